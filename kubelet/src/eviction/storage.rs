//! What pods have written to the node's disk, against what they may. Source: pkg/kubelet/eviction, localStorageEviction.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::rank::Use;
use crate::access::Entry;
use crate::agent::Agent;
use crate::pod::paths::Paths;
use crate::quantity::Quantity;

/// The resource of requests and limits.
const STORAGE: &str = "ephemeral-storage";

/// Bytes that a pod has written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Written {
    /// By volume: emptyDirs on the disk.
    volumes: BTreeMap<String, u64>,
    /// By container: its writable layer and its logs.
    containers: BTreeMap<String, u64>,
}

/// Pods that have written more than they may, with what is said of them. Only pods that have a limit are measured.
///
/// # Errors
/// If a pod's files can't be read.
pub async fn over_limits<'a>(
    agent: &Arc<Agent>,
    entries: &'a [Entry],
) -> io::Result<Vec<(&'a Entry, String)>> {
    let mut over = Vec::new();
    for entry in entries {
        let Some(spec) = entry.pod.spec.as_ref().filter(|spec| has_limits(spec)) else {
            continue;
        };
        let written = measure(agent, entry).await?;
        if let Some(message) = excess(spec, &written) {
            over.push((entry, message));
        }
    }
    Ok(over)
}

/// What the pod's containers and volumes have written; a volume counts for the first container.
///
/// # Errors
/// If the pod's files can't be read.
pub async fn uses(agent: &Arc<Agent>, entry: &Entry) -> io::Result<Vec<Use>> {
    let written = measure(agent, entry).await?;
    let volumes: u64 = written.volumes.values().sum();
    let spec = entry.pod.spec.as_ref();
    let containers = spec.map(|spec| spec.containers.as_slice());
    let uses = containers.unwrap_or_default().iter().enumerate();
    Ok(uses
        .map(|(at, container)| {
            let own = written.containers.get(&container.name).copied();
            let used = own.unwrap_or(0) + if at == 0 { volumes } else { 0 };
            Use::new(&entry.pod, &container.name, STORAGE, used)
        })
        .collect())
}

fn limit(limits: Option<&BTreeMap<String, ApiQuantity>>) -> Option<(u64, &str)> {
    let text = limits?.get(STORAGE)?.0.as_str();
    let bytes = Quantity::parse(text).ok()?.value();
    Some((u64::try_from(bytes).ok()?, text))
}

/// An emptyDir on the disk with a limit: its bytes, and as it is written.
fn volume_limits(spec: &PodSpec) -> impl Iterator<Item = (&str, u64, &str)> {
    spec.volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        // A tmpfs has its limit from the kernel.
        if source.medium.as_deref() == Some("Memory") {
            return None;
        }
        let text = source.size_limit.as_ref()?.0.as_str();
        let bytes = u64::try_from(Quantity::parse(text).ok()?.value()).ok()?;
        (bytes > 0).then_some((volume.name.as_str(), bytes, text))
    })
}

fn container_limits(spec: &PodSpec) -> impl Iterator<Item = (&str, u64, &str)> {
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers).filter_map(|container| {
        let (bytes, text) = limit(container.resources.as_ref()?.limits.as_ref())?;
        Some((container.name.as_str(), bytes, text))
    })
}

fn has_limits(spec: &PodSpec) -> bool {
    volume_limits(spec).next().is_some() || container_limits(spec).next().is_some()
}

/// The first limit that is exceeded, in the stock kubelet's words and order.
fn excess(spec: &PodSpec, written: &Written) -> Option<String> {
    for (name, bytes, text) in volume_limits(spec) {
        if written.volumes.get(name).is_some_and(|used| *used > bytes) {
            return Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. "
            ));
        }
    }
    let apps = |name: &str| spec.containers.iter().any(|c| c.name == name);
    let limits = container_limits(spec).filter(|(name, _, _)| apps(name));
    let total: u64 = limits.map(|(_, bytes, _)| bytes).sum();
    let used: u64 = written
        .volumes
        .values()
        .chain(written.containers.values())
        .sum();
    if total > 0 && used > total {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
        ));
    }
    for (name, bytes, text) in container_limits(spec) {
        let used = written.containers.get(name);
        if used.is_some_and(|used| *used > bytes) {
            return Some(format!(
                "Container {name} exceeded its local ephemeral storage limit {text:?}. "
            ));
        }
    }
    None
}

async fn measure(agent: &Arc<Agent>, entry: &Entry) -> io::Result<Written> {
    let meta = &entry.pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let paths = Paths::new(
        &agent.config,
        &text(&meta.namespace),
        &text(&meta.name),
        &text(&meta.uid),
    );
    let runs: Vec<(String, String)> = entry
        .running()
        .map(|(name, run)| (name.to_owned(), run.id.clone()))
        .collect();
    let volumes = disk_volumes(&entry.pod);
    let measured = tokio::task::spawn_blocking(move || {
        let disk = paths.volumes().disk;
        let mut written = Written::default();
        for name in volumes {
            let used = size(&disk.join(&name))?;
            written.volumes.insert(name, used);
        }
        for (name, id) in runs {
            let used = size(&paths.layer(&id))? + size(&paths.logs.join(&name))?;
            written.containers.insert(name, used);
        }
        Ok(written)
    });
    measured
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn disk_volumes(pod: &Pod) -> Vec<String> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let on_disk = volumes.filter(|volume| {
        let source = volume.empty_dir.as_ref();
        source.is_some_and(|source| source.medium.as_deref() != Some("Memory"))
    });
    on_disk.map(|volume| volume.name.clone()).collect()
}

/// Bytes of the blocks below `root`, other file systems left out; what goes meanwhile counts for nothing.
fn size(root: &Path) -> io::Result<u64> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let device = match fs::symlink_metadata(root) {
        Ok(metadata) => metadata.dev(),
        Err(error) if gone(&error) => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut sum = 0;
    let mut left: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if gone(&error) => continue,
            other => other?,
        };
        if metadata.dev() != device {
            continue;
        }
        // Of a file with several names each counts for its part.
        let names = if metadata.is_dir() {
            1
        } else {
            metadata.nlink().max(1)
        };
        sum += metadata.blocks() * 512 / names;
        if !metadata.is_dir() {
            continue;
        }
        let entries = match fs::read_dir(&path) {
            Err(error) if gone(&error) => continue,
            other => other?,
        };
        for entry in entries {
            left.push(entry?.path());
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(limits: &[Option<&str>], volume: serde_json::Value) -> PodSpec {
        let containers: Vec<_> = limits
            .iter()
            .enumerate()
            .map(|(at, limit)| {
                let limits = limit.map(|limit| json!({"limits": {STORAGE: limit}}));
                json!({"name": format!("c{at}"), "resources": limits.unwrap_or(json!({}))})
            })
            .collect();
        let volumes = json!([{"name": "v", "emptyDir": volume}]);
        serde_json::from_value(json!({"containers": containers, "volumes": volumes})).expect("spec")
    }

    fn written(volume: u64, containers: &[u64]) -> Written {
        let named = containers.iter().enumerate();
        Written {
            volumes: BTreeMap::from([("v".to_owned(), volume)]),
            containers: named.map(|(at, used)| (format!("c{at}"), *used)).collect(),
        }
    }

    #[test]
    fn an_empty_dir_over_its_limit_is_named_and_one_in_memory_is_the_kernels() {
        let on_disk = spec(&[None], json!({"sizeLimit": "1Ki"}));
        assert_eq!(excess(&on_disk, &written(1024, &[0])), None);
        assert_eq!(
            excess(&on_disk, &written(1025, &[0])).as_deref(),
            Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\". ")
        );
        let memory = spec(&[None], json!({"sizeLimit": "1Ki", "medium": "Memory"}));
        assert!(!has_limits(&memory));
    }

    #[test]
    fn a_pod_may_write_the_sum_and_a_container_its_own() {
        let both = spec(&[Some("1k"), Some("2k")], json!({}));
        assert_eq!(excess(&both, &written(500, &[900, 1500])), None);
        let pod = excess(&both, &written(2000, &[600, 500])).expect("over");
        assert!(pod.contains("total limit of containers 3000"), "{pod}");
        let one = excess(&both, &written(0, &[1001, 0])).expect("over");
        assert_eq!(
            one,
            "Container c0 exceeded its local ephemeral storage limit \"1k\". "
        );
    }

    #[test]
    fn who_has_no_limit_is_not_measured() {
        assert!(!has_limits(&spec(&[None], json!({}))));
        assert!(has_limits(&spec(&[None, Some("1k")], json!({}))));
    }

    #[test]
    fn blocks_count_once_for_a_file_of_two_names() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir(dir.path().join("d")).expect("made");
        let file = dir.path().join("d/f");
        fs::write(&file, vec![1; 64 << 10]).expect("written");
        let before = size(dir.path()).expect("read");
        assert!(before >= 64 << 10, "{before}");
        fs::hard_link(&file, dir.path().join("g")).expect("linked");
        let after = size(dir.path()).expect("read");
        assert!(after < before + (32 << 10), "{before} {after}");
        assert_eq!(size(&dir.path().join("none")).expect("nothing"), 0);
    }
}
