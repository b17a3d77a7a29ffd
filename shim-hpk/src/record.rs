//! What a container's bundle remembers for `delete`, should the shim die: `hpk.json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{apply::helped, error::Error, procfs};

const NAME: &str = "hpk.json";

/// A container's traces outside its bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Apptainer, while it lives.
    pub engine: Option<i32>,
    /// The container's first process.
    pub init: Option<i32>,
    /// The directories made for its cgroup, a parent before its children.
    pub cgroup: Vec<PathBuf>,
}

/// The same, as it is on disk.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    pub processes: Vec<Identity>,
    pub cgroup: Vec<PathBuf>,
}

/// A pid alone may be somebody else's later: its start time tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks since boot, from /proc/PID/stat.
    pub started: u64,
}

impl Identity {
    /// Whether that very process is still there.
    pub fn is_alive(&self) -> bool {
        procfs::start_time(self.pid) == Some(self.started)
    }
}

impl Record {
    /// Replaces what the bundle remembers.
    pub fn write(&self, bundle: &Path) -> Result<(), Error> {
        let identify = |pid: Option<i32>| {
            pid.and_then(|pid| {
                Some(Identity {
                    pid,
                    started: procfs::start_time(pid)?,
                })
            })
        };
        let remembered = Remembered {
            processes: [self.engine, self.init]
                .into_iter()
                .filter_map(identify)
                .collect(),
            cgroup: self.cgroup.clone(),
        };
        let path = bundle.join(NAME);
        let temporary = bundle.join("hpk.json.tmp");
        let bytes = serde_json::to_vec(&remembered).map_err(|source| Error::Spec {
            path: path.clone(),
            source,
        })?;
        std::fs::write(&temporary, bytes)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|source| Error::File {
                action: "write",
                path,
                source,
            })
    }
}

/// What a bundle remembers; `None` if there is no container of it.
pub fn read(bundle: &Path) -> Result<Option<Remembered>, Error> {
    let path = bundle.join(NAME);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| Error::Spec { path, source }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File {
            action: "read",
            path,
            source,
        }),
    }
}

/// Removes what the shim put into a bundle. Best effort: the bundle goes next.
pub fn remove(bundle: &Path) {
    helped::unmount(bundle);
    for name in [NAME, "apptainer.conf"] {
        let _ = std::fs::remove_file(bundle.join(name));
    }
    let _ = std::fs::remove_dir_all(bundle.join("apptainer"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_this_very_process() {
        let bundle = tempfile::tempdir().unwrap();
        Record {
            init: Some(std::process::id() as i32),
            cgroup: vec!["/sys/fs/cgroup/x".into()],
            ..Record::default()
        }
        .write(bundle.path())
        .unwrap();
        let remembered = read(bundle.path()).unwrap().unwrap();
        assert_eq!(remembered.cgroup, [PathBuf::from("/sys/fs/cgroup/x")]);
        let identities = remembered.processes;
        assert!(identities[0].is_alive());
        let other = Identity {
            started: identities[0].started + 1,
            ..identities[0]
        };
        assert!(!other.is_alive());
    }

    #[test]
    fn a_bundle_without_a_record_has_no_container() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(read(bundle.path()).unwrap(), None);
    }
}
