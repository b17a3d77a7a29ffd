//! A group of containers' cgroups: limits of all of them together.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Cgroup, Error, Hierarchy, Request, is_denied};

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

/// Best effort, the innermost first: what is in use refuses to go.
pub(crate) fn remove_children(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_children(&entry.path());
            if let Err(error) = std::fs::remove_dir(entry.path()) {
                log::debug!("{} stays: {error}", entry.path().display());
            }
        }
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
