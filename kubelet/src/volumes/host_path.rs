//! hostPath volumes: a path of the bubble (or of the user's home bound into it), checked by type.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    Type { path: PathBuf, wanted: &'static str },
    #[error("hostPath type {0:?} is not known")]
    UnknownType(String),
    #[error("hostPath: can't create {path}")]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Checks, and for `…OrCreate` creates, the path.
pub fn ensure(path: &Path, kind: &str) -> Result<(), Error> {
    let found = fs::metadata(path).ok().map(|meta| meta.file_type());
    let check = |fits: bool, wanted: &'static str| {
        if fits {
            Ok(())
        } else {
            let path = path.to_owned();
            Err(Error::Type { path, wanted })
        }
    };
    let create = |source: io::Error| Error::Create {
        path: path.to_owned(),
        source,
    };
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" => match found {
            Some(kind) => check(kind.is_dir(), "directory"),
            None => make_dir(path).map_err(create),
        },
        "Directory" => check(found.is_some_and(|kind| kind.is_dir()), "directory"),
        "FileOrCreate" => match found {
            Some(kind) => check(kind.is_file(), "file"),
            None => make_file(path).map_err(create),
        },
        "File" => check(found.is_some_and(|kind| kind.is_file()), "file"),
        "Socket" => check(found.is_some_and(|kind| kind.is_socket()), "socket file"),
        "CharDevice" => check(
            found.is_some_and(|kind| kind.is_char_device()),
            "character device",
        ),
        "BlockDevice" => check(
            found.is_some_and(|kind| kind.is_block_device()),
            "block device",
        ),
        other => Err(Error::UnknownType(other.to_owned())),
    }
}

/// A folder, 0755. A symlink that takes its place meanwhile is not followed.
fn make_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::create_dir(path)?;
    fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
        .open(path)?
        .set_permissions(fs::Permissions::from_mode(0o755))
}

/// An empty file, 0644, where nothing is, not even a symlink that leads nowhere.
fn make_file(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)?
        .set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_created_through_a_symlink() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).expect("symlink");
        assert!(ensure(&link, "FileOrCreate").is_err());
        assert!(ensure(&link, "DirectoryOrCreate").is_err());
        assert!(!target.exists());
    }

    #[test]
    fn a_directory_is_created_only_when_asked_for() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a/b");
        assert!(ensure(&path, "Directory").is_err());
        ensure(&path, "DirectoryOrCreate").expect("created");
        ensure(&path, "Directory").expect("exists");
    }

    #[test]
    fn a_file_is_not_a_directory() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("f");
        ensure(&path, "FileOrCreate").expect("created");
        let error = ensure(&path, "Directory").expect_err("a file");
        assert!(error.to_string().ends_with("is not a directory"));
    }
}
