//! Where in a volume a container's mount begins: subPath, which must not lead out of the volume.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error("subPath {0:?} leads out of its volume")]
    Escapes(String),
    #[error("can't prepare subPath {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The path to bind: `volume` itself, or what `sub_path` names in it (made as a folder if absent).
///
/// The check resolves symlinks before the mount; a container that swaps a folder for a symlink in
/// between could still lead us elsewhere, but only within what its user owns: the bubble.
pub fn resolve(volume: &Path, sub_path: &str) -> Result<PathBuf, Error> {
    if sub_path.is_empty() {
        return Ok(volume.to_owned());
    }
    let relative = Path::new(sub_path);
    let plain = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain {
        return Err(Error::Escapes(sub_path.to_owned()));
    }
    let wanted = volume.join(relative);
    let fail = |source| Error::Io {
        path: wanted.clone(),
        source,
    };
    let root = fs::canonicalize(volume).map_err(fail)?;
    // Before anything is made, the deepest part that exists must lie inside.
    let mut existing = wanted.as_path();
    while fs::symlink_metadata(existing).is_err() {
        existing = existing.parent().unwrap_or(volume);
    }
    let inside = fs::canonicalize(existing).map_err(fail)?;
    if !inside.starts_with(&root) {
        return Err(Error::Escapes(sub_path.to_owned()));
    }
    if fs::symlink_metadata(&wanted).is_err() {
        let mode = fs::metadata(&root).map_err(fail)?.permissions().mode();
        fs::create_dir_all(&wanted).map_err(fail)?;
        fs::set_permissions(&wanted, fs::Permissions::from_mode(mode & 0o7777)).map_err(fail)?;
    }
    fs::canonicalize(&wanted).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_sub_path_is_made_when_absent() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = resolve(dir.path(), "a/b").expect("resolved");
        assert!(path.is_dir());
    }

    #[test]
    fn neither_dots_nor_symlinks_lead_out() {
        let dir = tempfile::tempdir().expect("tempdir");
        symlink("/etc", dir.path().join("link")).expect("symlink");
        assert!(matches!(
            resolve(dir.path(), "../x"),
            Err(Error::Escapes(_))
        ));
        assert!(matches!(
            resolve(dir.path(), "link/x"),
            Err(Error::Escapes(_))
        ));
    }
}
