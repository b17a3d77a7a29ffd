//! The folder of manifests: a pod in each file, YAML or JSON.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Toleration};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{HASH, SOURCE, full_name};

/// A longer file is no manifest, bytes.
const LONGEST: u64 = 1 << 20;

/// Why a file gives no pod.
#[derive(Debug, Error)]
pub enum Error {
    #[error("can't read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no manifest: it has {bytes} bytes, more than 1 MiB")]
    TooLong { path: PathBuf, bytes: u64 },
    #[error("{path} is no manifest")]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_yaml_ng::Error,
    },
    #[error("{path} is no v1 Pod but {kind:?}")]
    Kind { path: PathBuf, kind: String },
    #[error("{path}: {what}")]
    Incomplete { path: PathBuf, what: &'static str },
    #[error("{path}: another file has the pod {namespace}/{name}, too")]
    Twice {
        path: PathBuf,
        namespace: String,
        name: String,
    },
}

/// The pods of all files of a folder, and what is wrong with the others. A folder that isn't there has none.
///
/// # Errors
/// If the folder can't be listed: then nothing is known of its pods.
pub fn folder(dir: &Path, node: &str) -> io::Result<(Vec<Pod>, Vec<Error>)> {
    let mut paths = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        entries => entries
            .and_then(|entries| {
                entries
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect::<io::Result<Vec<_>>>()
            })
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", dir.display())))?,
    };
    paths.retain(|path| !is_hidden(path) && path.is_file());
    paths.sort();
    let (mut pods, mut errors, mut names) = (Vec::new(), Vec::new(), HashSet::new());
    for path in paths {
        match read(&path, node) {
            Ok(pod) => {
                let (namespace, name) = full_name(&pod);
                if names.insert((namespace.clone(), name.clone())) {
                    pods.push(pod);
                } else {
                    errors.push(Error::Twice {
                        path,
                        namespace,
                        name,
                    });
                }
            }
            Err(error) => errors.push(error),
        }
    }
    Ok((pods, errors))
}

/// Editors keep their copies under such names.
fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') || name.ends_with('~')
}

fn read(path: &Path, node: &str) -> Result<Pod, Error> {
    let error = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let bytes = fs::metadata(path).map_err(error)?.len();
    if bytes > LONGEST {
        return Err(Error::TooLong {
            path: path.to_owned(),
            bytes,
        });
    }
    parse(path, &fs::read_to_string(path).map_err(error)?, node)
}

/// The pod as it runs here: its name ends in the node's, its uid is made from all of it.
fn parse(path: &Path, text: &str, node: &str) -> Result<Pod, Error> {
    let path_of = || path.to_owned();
    let value: serde_json::Value =
        serde_yaml_ng::from_str(text).map_err(|source| Error::Parse {
            path: path_of(),
            source,
        })?;
    let word = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let kind = format!("{} {}", word("apiVersion"), word("kind"));
    if kind != "v1 Pod" {
        return Err(Error::Kind {
            path: path_of(),
            kind,
        });
    }
    let mut pod: Pod = serde_yaml_ng::from_str(text).map_err(|source| Error::Parse {
        path: path_of(),
        source,
    })?;
    let incomplete = |what| Error::Incomplete {
        path: path_of(),
        what,
    };
    let name = pod.metadata.name.clone().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| incomplete("metadata.name is missing"))?;
    let spec = pod
        .spec
        .as_mut()
        .filter(|spec| !spec.containers.is_empty())
        .ok_or_else(|| incomplete("spec.containers is missing"))?;
    if spec.service_account_name.is_some() || spec.service_account.is_some() {
        return Err(incomplete(
            "a static pod can't have a service account: no API server vouches for it",
        ));
    }
    let uid = uid(path, text, node);
    spec.node_name = Some(node.to_owned());
    // It is the node's own: no taint drives it away.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    });
    let meta = &mut pod.metadata;
    meta.name = Some(format!("{name}-{node}"));
    meta.namespace.get_or_insert_with(|| "default".to_owned());
    meta.uid = Some(uid.clone());
    let annotations = meta.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    annotations.insert(HASH.to_owned(), uid);
    pod.status = None;
    Ok(pod)
}

/// 32 hexadecimal digits, as the stock kubelet's.
fn uid(path: &Path, text: &str, node: &str) -> String {
    let mut hash = Sha256::new();
    for part in [
        node.as_bytes(),
        path.as_os_str().as_encoded_bytes(),
        text.as_bytes(),
    ] {
        hash.update(part);
        hash.update([0]);
    }
    let digits = hash.finalize();
    digits
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";

    fn parsed(text: &str) -> Result<Pod, Error> {
        parse(Path::new("/m/web.yaml"), text, "n1")
    }

    #[test]
    fn a_static_pod_has_its_nodes_name_and_a_uid_made_from_its_content() {
        let pod = parsed(WEB).expect("a pod");
        let (namespace, name) = full_name(&pod);
        assert_eq!((namespace.as_str(), name.as_str()), ("default", "web-n1"));
        let uid = pod.metadata.uid.clone().expect("uid");
        assert_eq!(uid.len(), 32);
        assert_eq!(super::super::annotation(&pod, HASH), Some(uid.as_str()));
        let changed = parsed(&WEB.replace("image: i", "image: j")).expect("a pod");
        assert_ne!(changed.metadata.uid, Some(uid));
    }

    #[test]
    fn a_file_without_a_pod_is_refused_by_what_is_wrong_with_it() {
        for (text, part) in [
            ("a: [", "/m/web.yaml is no manifest"),
            ("apiVersion: v1\nkind: Service", "v1 Service"),
            (
                "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: c}]}",
                "metadata.name",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: w}\nspec: {containers: []}",
                "spec.containers",
            ),
            (
                &WEB.replace("spec: {", "spec: {serviceAccountName: x, "),
                "service account",
            ),
        ] {
            let error = parsed(text).expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_bad_file_and_a_second_of_that_name_hold_nothing_up() {
        let dir = tempfile::tempdir().expect("tempdir");
        let write = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).expect("written");
        };
        write("a.yaml", WEB);
        write("b.yaml", WEB);
        write("c.yaml", "nonsense");
        write(".d.yaml.swp", "nonsense");
        write("e.yaml~", "nonsense");
        let (pods, errors) = folder(dir.path(), "n1").expect("listed");
        assert_eq!(pods.len(), 1);
        assert!(errors[0].to_string().contains("b.yaml"), "{}", errors[0]);
        assert!(errors[1].to_string().contains("c.yaml"), "{}", errors[1]);
        assert_eq!(errors.len(), 2);
        let (pods, _) = folder(&dir.path().join("none"), "n1").expect("nothing");
        assert!(pods.is_empty());
    }
}
