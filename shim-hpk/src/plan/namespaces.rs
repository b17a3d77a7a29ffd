//! `linux.namespaces`: made anew, or joined by path.

use std::path::PathBuf;

use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::error::Error;

/// The container's PID namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pid {
    /// Its own; its program is PID 1.
    New,
    /// The shim's.
    Host,
    /// Another container's.
    Join(PathBuf),
}

/// One that is joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    pub path: PathBuf,
    pub flag: CloneFlags,
    /// What asks for it, for errors.
    pub field: String,
}

/// What a container asks for.
pub struct Namespaces {
    pub unshare: CloneFlags,
    pub join: Vec<Joined>,
    pub pid: Pid,
    pub new_cgroup: bool,
    pub warning: Option<String>,
}

/// The field of a namespace, as errors name it.
pub fn field(kind: LinuxNamespaceType) -> String {
    format!("linux.namespaces {}", format!("{kind:?}").to_lowercase())
}

/// Plans the namespaces.
///
/// # Errors
/// [`Error::Unsupported`] or [`Error::Invalid`] with the namespace's name.
pub fn plan(spec: &Spec) -> Result<Namespaces, Error> {
    let mut all = Namespaces {
        unshare: CloneFlags::CLONE_NEWNS,
        join: Vec::new(),
        pid: Pid::Host,
        new_cgroup: false,
        warning: None,
    };
    let linux = spec.linux().as_ref();
    let asked = linux.and_then(|l| l.namespaces().as_deref());
    let mut seen = Vec::new();
    for namespace in asked.into_iter().flatten() {
        let kind = namespace.typ();
        let invalid = |why: String| {
            Err(Error::Invalid {
                field: field(kind),
                why,
            })
        };
        if seen.contains(&kind) {
            return invalid("it is there twice".to_owned());
        }
        seen.push(kind);
        let given = namespace.path().clone();
        let path = given.filter(|path| !path.as_os_str().is_empty());
        if let Some(relative) = path.as_ref().filter(|path| !path.is_absolute()) {
            return invalid(format!("{} is not absolute", relative.display()));
        }
        let refuse = |why| {
            Err(Error::Unsupported {
                field: field(kind),
                why,
            })
        };
        let flag = match kind {
            // Its mounts are made there, and go with it.
            LinuxNamespaceType::Mount if path.is_some() => {
                return refuse("a container has a mount namespace of its own");
            }
            LinuxNamespaceType::Mount => continue,
            LinuxNamespaceType::Pid => {
                all.pid = path.map_or(Pid::New, Pid::Join);
                continue;
            }
            LinuxNamespaceType::Cgroup if path.is_none() => {
                all.new_cgroup = true;
                continue;
            }
            LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
            LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
            LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
            LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            LinuxNamespaceType::User | LinuxNamespaceType::Time => {
                return refuse("containers live in the bubble's");
            }
        };
        match path {
            Some(path) => all.join.push(Joined {
                path,
                flag,
                field: field(kind),
            }),
            None => all.unshare |= flag,
        }
    }
    if !seen.contains(&LinuxNamespaceType::Mount) {
        all.warning = Some("linux.namespaces has no mount: the container gets one".to_owned());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(namespaces: Value) -> Result<Namespaces, Error> {
        let spec = json!({"ociVersion": "1.1.0", "linux": {"namespaces": namespaces}});
        plan(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn what_cannot_be_joined_is_refused_by_its_name() {
        for (namespaces, wanted) in [
            (
                json!([{"type": "mount", "path": "/proc/1/ns/mnt"}]),
                "linux.namespaces mount is not supported",
            ),
            (
                json!([{"type": "user"}]),
                "linux.namespaces user is not supported",
            ),
            (
                json!([{"type": "network"}, {"type": "network", "path": "/n"}]),
                "linux.namespaces network is invalid: it is there twice",
            ),
            (
                json!([{"type": "ipc", "path": "proc/1/ns/ipc"}]),
                "linux.namespaces ipc is invalid: proc/1/ns/ipc is not absolute",
            ),
        ] {
            let text = planned(namespaces).err().unwrap().to_string();
            assert!(text.starts_with(wanted), "{text}");
        }
    }

    #[test]
    fn an_empty_path_means_a_new_one() {
        let all = planned(json!([{"type": "uts", "path": ""}])).unwrap();
        assert!(all.join.is_empty());
        assert!(all.unshare.contains(CloneFlags::CLONE_NEWUTS));
        assert!(all.warning.unwrap().contains("mount"));
    }
}
