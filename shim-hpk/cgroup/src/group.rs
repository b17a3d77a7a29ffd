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

/// Removes the group, whose containers are gone. Nothing for one that isn't there.
///
/// # Errors
/// All that can't be removed, in one.
pub fn remove(hierarchies: &[Hierarchy], path: &Path) -> Result<(), Error> {
    let mut failed = None;
    for directory in places(hierarchies, path) {
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

/// Where it may have been made.
fn places<'a>(hierarchies: &'a [Hierarchy], path: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
    hierarchies.iter().flat_map(move |hierarchy| {
        [
            hierarchy.mount.join(path),
            hierarchy.mount.join(&hierarchy.own).join(path),
        ]
    })
}
