//! emptyDir volumes: a folder of the node, or a tmpfs for medium Memory.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use nix::mount::{MsFlags, mount};
use thiserror::Error;

use crate::mounts;
use crate::quantity::{self, Quantity};

#[derive(Debug, Error)]
pub enum Error {
    #[error("can't create {path}")]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("sizeLimit")]
    Size(#[source] quantity::Error),
    #[error("medium {0:?} is not supported by hpk-kubelet")]
    Medium(String),
    #[error("can't mount a tmpfs on {path}")]
    Mount {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The folder exists, is writable by all, and is a tmpfs if the medium is Memory. Idempotent:
/// the content of an earlier start of the kubelet stays.
pub fn ensure(path: &Path, source: &EmptyDirVolumeSource) -> Result<(), Error> {
    let create = |source: io::Error| Error::Create {
        path: path.to_owned(),
        source,
    };
    let fresh = !path.exists();
    if fresh {
        fs::create_dir_all(path).map_err(create)?;
    }
    match source.medium.as_deref().unwrap_or_default() {
        "" if fresh => fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(create),
        "" => Ok(()),
        "Memory" if mounts::is_mount_point(path).map_err(create)? => Ok(()),
        "Memory" => mount_tmpfs(path, source),
        other => Err(Error::Medium(other.to_owned())),
    }
}

fn mount_tmpfs(path: &Path, source: &EmptyDirVolumeSource) -> Result<(), Error> {
    // With the sticky bit, as the kernel's own default and so the stock kubelet's.
    let mut options = "mode=1777".to_owned();
    if let Some(limit) = &source.size_limit {
        let bytes = Quantity::parse(&limit.0).map_err(Error::Size)?.value();
        if bytes > 0 {
            options.push_str(&format!(",size={bytes}"));
        }
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )
    .map_err(|errno| Error::Mount {
        path: path.to_owned(),
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_content_when_ensured_again() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("v");
        ensure(&path, &EmptyDirVolumeSource::default()).expect("made");
        fs::write(path.join("f"), "x").expect("write");
        ensure(&path, &EmptyDirVolumeSource::default()).expect("made");
        assert!(path.join("f").exists());
        let mode = fs::metadata(&path).expect("meta").permissions().mode();
        assert_eq!(mode & 0o7777, 0o777);
    }
}
