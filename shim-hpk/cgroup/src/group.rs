//! A group of containers' cgroups: limits of all of them together, and what is used.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Cgroup, Error, Hierarchy, Request, Version, is_denied};

/// Where pods' groups are.
pub const PODS: &str = "kubepods";

/// Makes the group or takes the one that is there, and sets its limits; gives what can't be had.
///
/// # Errors
/// A value the kernel refuses, or a group with processes of its own.
pub fn ensure(hierarchies: &[Hierarchy], request: &Request) -> Result<Vec<String>, Error> {
    Cgroup::make(hierarchies, request).map(|(_, not_done)| not_done)
}

/// Removes the group, whose containers are gone, and what is left of their cgroups. Nothing for one
/// that isn't there.
///
/// # Errors
/// The last that is still in use.
pub fn remove(hierarchies: &[Hierarchy], path: &Path) -> Result<(), Error> {
    let mut failed = None;
    for directory in places(hierarchies, path) {
        remove_children(&directory);
        match std::fs::remove_dir(&directory) {
            Err(source) if source.kind() == io::ErrorKind::NotFound || is_denied(&source) => {}
            Err(source) => {
                failed = Some(Error::File {
                    action: "remove cgroup",
                    path: directory,
                    source,
                });
            }
            Ok(()) => {}
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Of a cgroup and those in it, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub used: u64,
    /// More than there can be, where there is none.
    pub limit: u64,
}

/// What the group, or the cgroup of one of its containers, uses; none if it has no memory controller.
///
/// # Errors
/// A file that can't be read or understood.
pub fn memory(hierarchies: &[Hierarchy], path: &Path) -> Result<Option<Memory>, Error> {
    for hierarchy in hierarchies {
        let (used, limit) = match hierarchy.version {
            Version::V1 => ("memory.usage_in_bytes", "memory.limit_in_bytes"),
            Version::V2 => ("memory.current", "memory.max"),
        };
        for directory in places(std::slice::from_ref(hierarchy), path) {
            let figures = (
                bytes(&directory.join(used))?,
                bytes(&directory.join(limit))?,
            );
            if let (Some(used), Some(limit)) = figures {
                return Ok(Some(Memory { used, limit }));
            }
        }
    }
    Ok(None)
}

/// None if there is no such file.
fn bytes(file: &Path) -> Result<Option<u64>, Error> {
    let error = |source| Error::File {
        action: "read",
        path: file.to_owned(),
        source,
    };
    match std::fs::read_to_string(file) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(error(source)),
        Ok(text) if text.trim() == "max" => Ok(Some(u64::MAX)),
        Ok(text) => {
            let number = text.trim().parse();
            number
                .map(Some)
                .map_err(|wrong| error(io::Error::new(io::ErrorKind::InvalidData, wrong)))
        }
    }
}

/// Best effort, the innermost first: what is in use refuses to go.
pub(crate) fn remove_children(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_child(&entry.path());
        }
    }
}

pub(crate) fn remove_child(directory: &Path) {
    remove_children(directory);
    if let Err(error) = std::fs::remove_dir(directory) {
        log::debug!("{} stays: {error}", directory.display());
    }
}

/// Where it may have been made.
fn places<'a>(hierarchies: &'a [Hierarchy], path: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
    hierarchies.iter().flat_map(move |hierarchy| {
        [
            hierarchy.mount.join(path),
            hierarchy.mount.join(&hierarchy.own).join(path),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Version;

    #[test]
    fn memory_is_read_on_either_version_and_none_where_there_is_none() {
        let mount = tempfile::tempdir().unwrap();
        let hierarchy = |version| Hierarchy {
            version,
            controllers: vec!["memory".into()],
            mount: mount.path().to_owned(),
            own: "own".into(),
        };
        let path = Path::new("kubepods/pod1");
        let group = mount.path().join("own").join(path);
        std::fs::create_dir_all(&group).unwrap();
        let of = |version| memory(&[hierarchy(version)], path);
        assert_eq!(of(Version::V2).unwrap(), None);
        let write = |file: &str, text: &str| std::fs::write(group.join(file), text).unwrap();
        write("memory.current", "4096\n");
        write("memory.max", "max\n");
        let unlimited = Memory {
            used: 4096,
            limit: u64::MAX,
        };
        assert_eq!(of(Version::V2).unwrap(), Some(unlimited));
        write("memory.usage_in_bytes", "1\n");
        write("memory.limit_in_bytes", "much\n");
        assert!(of(Version::V1).is_err());
        write("memory.limit_in_bytes", "2\n");
        assert_eq!(of(Version::V1).unwrap(), Some(Memory { used: 1, limit: 2 }));
    }

    #[test]
    fn what_is_left_of_its_containers_goes_with_it() {
        let mount = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(mount.path().join("own/kubepods/pod1/c1")).unwrap();
        let hierarchy = Hierarchy {
            version: Version::V1,
            controllers: vec!["memory".into()],
            mount: mount.path().to_owned(),
            own: "own".into(),
        };
        let path = Path::new("kubepods/pod1");
        remove(std::slice::from_ref(&hierarchy), path).unwrap();
        assert!(!mount.path().join("own").join(path).exists());
        remove(&[hierarchy], path).unwrap();
    }
}
