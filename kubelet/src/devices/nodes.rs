//! Device nodes as an OCI spec has them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use thiserror::Error;

/// Why a container can't have a device that its pod was given.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{resource}: device {node} was given to this pod and is no longer offered by the node")]
    Unknown { resource: String, node: PathBuf },
    #[error("can't look at device {node}")]
    Look {
        node: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} is no device node")]
    NoDevice(PathBuf),
    #[error("can't describe device {node}")]
    Describe {
        node: PathBuf,
        #[source]
        source: Box<OciSpecError>,
    },
}

/// The node at the same place in a container.
pub fn look(node: &Path) -> Result<LinuxDevice, Error> {
    let meta = fs::metadata(node).map_err(|source| Error::Look {
        node: node.to_owned(),
        source,
    })?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Err(Error::NoDevice(node.to_owned())),
    };
    let number = |part: u64| i64::try_from(part).unwrap_or(i64::MAX);
    LinuxDeviceBuilder::default()
        .path(node)
        .typ(kind)
        .major(number(major(meta.rdev())))
        .minor(number(minor(meta.rdev())))
        .build()
        .map_err(|source| Error::Describe {
            node: node.to_owned(),
            source: Box::new(source),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_described_by_its_numbers_and_what_is_none_is_named() {
        let null = look(Path::new("/dev/null")).expect("a device");
        assert_eq!((null.major(), null.minor()), (1, 3));
        let error = look(Path::new("/dev/no-such-device")).expect_err("absent");
        assert!(error.to_string().contains("/dev/no-such-device"));
        assert!(matches!(look(Path::new("/etc")), Err(Error::NoDevice(_))));
    }
}
