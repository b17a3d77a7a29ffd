//! Apptainer's single-file images (SIF): where the root file system lies in one. Such a file is mounted where it is, not taken
//! into the store.
//!
//! The format is that of <https://github.com/apptainer/sif> (pkg/sif): a global header, a table of descriptors, the data;
//! all numbers little endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::manifest::machine_architecture;

/// Offset and text that tell the format.
const MAGIC: (u64, &[u8]) = (32, b"SIF_MAGIC\0");
/// Offset of the architecture's code, two digits and a zero.
const ARCHITECTURE: u64 = 45;
/// Offset of: number of descriptors, offset of their table (64 bits each; the number of free ones lies between).
const DESCRIPTORS_TOTAL: u64 = 88;
const DESCRIPTORS_OFFSET: u64 = 96;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 585;
/// No image has so many.
const MOST_DESCRIPTORS: u64 = 4096;

/// Of a descriptor: kind of data, whether it is in use, offset and size of the data, and for a partition its file system
/// and what it is for.
const KIND: usize = 0;
const USED: usize = 4;
const DATA_OFFSET: usize = 17;
const DATA_SIZE: usize = 25;
const FILE_SYSTEM: usize = 201;
const PURPOSE: usize = 205;

const KIND_PARTITION: i32 = 0x4004;
const PURPOSE_PRIMARY_SYSTEM: i32 = 2;
const SQUASHFS: i32 = 1;

/// The root file system in a SIF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Squashfs {
    /// The file.
    pub path: PathBuf,
    /// Bytes from its beginning.
    pub offset: u64,
}

/// Why there is none to be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another format.
    #[error("{path} is no SIF image")]
    NoSif {
        /// The file.
        path: PathBuf,
    },
    /// It holds no system partition.
    #[error("{path} has no root file system in it")]
    NoSystem {
        /// The file.
        path: PathBuf,
    },
    /// ext3, encrypted, or unknown.
    #[error(
        "the root file system of {path} is {found}, and only squashfs can be mounted: rebuild it with apptainer build"
    )]
    FileSystem {
        /// The file.
        path: PathBuf,
        /// In words.
        found: &'static str,
    },
    /// For machines of another kind.
    #[error("{path} is for {found}, and this machine is {here}")]
    Architecture {
        /// The file.
        path: PathBuf,
        /// As Go names it.
        found: String,
        /// The same.
        here: &'static str,
    },
}

/// Looks for the root file system in the SIF at `path`.
pub fn find(path: &Path) -> Result<Squashfs, Error> {
    let read = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let no_sif = || Error::NoSif {
        path: path.to_owned(),
    };
    let mut header = [0; 128];
    match file.read_exact_at(&mut header, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(no_sif()),
        other => other.map_err(read)?,
    }
    let at = |offset: u64| &header[usize::try_from(offset).unwrap_or(usize::MAX)..];
    if !at(MAGIC.0).starts_with(MAGIC.1) {
        return Err(no_sif());
    }
    let total = number(at(DESCRIPTORS_TOTAL)).ok_or_else(no_sif)?;
    let table = number(at(DESCRIPTORS_OFFSET)).ok_or_else(no_sif)?;
    if total > MOST_DESCRIPTORS {
        return Err(no_sif());
    }
    for index in 0..total {
        let mut descriptor = [0; DESCRIPTOR];
        let offset = table.saturating_add(index * DESCRIPTOR as u64);
        match file.read_exact_at(&mut descriptor, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(no_sif()),
            other => other.map_err(read)?,
        }
        let is_system = descriptor[USED] == 1
            && code(&descriptor, KIND) == KIND_PARTITION
            && code(&descriptor, PURPOSE) == PURPOSE_PRIMARY_SYSTEM;
        if !is_system {
            continue;
        }
        if code(&descriptor, FILE_SYSTEM) != SQUASHFS {
            return Err(Error::FileSystem {
                path: path.to_owned(),
                found: file_system(code(&descriptor, FILE_SYSTEM)),
            });
        }
        let here = machine_architecture();
        let found = architecture(at(ARCHITECTURE));
        if found != here {
            return Err(Error::Architecture {
                path: path.to_owned(),
                found: found.to_owned(),
                here,
            });
        }
        let offset = number(&descriptor[DATA_OFFSET..]).ok_or_else(no_sif)?;
        let size = number(&descriptor[DATA_SIZE..]).ok_or_else(no_sif)?;
        // A file that was cut off would be found out by its mount, in worse words.
        if offset.checked_add(size).is_none_or(|end| end > length) {
            return Err(Error::Read {
                path: path.to_owned(),
                source: io::ErrorKind::UnexpectedEof.into(),
            });
        }
        return Ok(Squashfs {
            path: path.to_owned(),
            offset,
        });
    }
    Err(Error::NoSystem {
        path: path.to_owned(),
    })
}

/// A number of 64 bits that can't be negative.
fn number(bytes: &[u8]) -> Option<u64> {
    let bytes = bytes.first_chunk()?;
    i64::from_le_bytes(*bytes).try_into().ok()
}

fn code(descriptor: &[u8; DESCRIPTOR], offset: usize) -> i32 {
    let bytes = descriptor[offset..].first_chunk();
    bytes.map_or(0, |bytes| i32::from_le_bytes(*bytes))
}

fn file_system(code: i32) -> &'static str {
    match code {
        2 => "ext3",
        5 => "an encrypted squashfs",
        _ => "of an unknown kind",
    }
}

/// The name that Go, and so OCI, has for the code.
fn architecture(code: &[u8]) -> &str {
    match code.first_chunk() {
        Some(b"01") => "386",
        Some(b"02") => "amd64",
        Some(b"03") => "arm",
        Some(b"04") => "arm64",
        Some(b"05") => "ppc64",
        Some(b"06") => "ppc64le",
        Some(b"11") => "s390x",
        Some(b"12") => "riscv64",
        _ => "an unknown architecture",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SIF with one partition, as the format says.
    fn sif(architecture: &str, file_system: i32, purpose: i32, offset: i64, size: i64) -> Vec<u8> {
        let mut bytes = vec![0; 128 + DESCRIPTOR];
        bytes[32..42].copy_from_slice(MAGIC.1);
        bytes[42..44].copy_from_slice(b"01");
        bytes[45..47].copy_from_slice(architecture.as_bytes());
        bytes[88..96].copy_from_slice(&1_i64.to_le_bytes());
        bytes[96..104].copy_from_slice(&128_i64.to_le_bytes());
        let descriptor = &mut bytes[128..];
        descriptor[..4].copy_from_slice(&KIND_PARTITION.to_le_bytes());
        descriptor[USED] = 1;
        descriptor[DATA_OFFSET..DATA_OFFSET + 8].copy_from_slice(&offset.to_le_bytes());
        descriptor[DATA_SIZE..DATA_SIZE + 8].copy_from_slice(&size.to_le_bytes());
        descriptor[FILE_SYSTEM..FILE_SYSTEM + 4].copy_from_slice(&file_system.to_le_bytes());
        descriptor[PURPOSE..PURPOSE + 4].copy_from_slice(&purpose.to_le_bytes());
        bytes.extend([7; 100]);
        bytes
    }

    fn found(bytes: &[u8]) -> Result<Squashfs, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        find(file.path())
    }

    fn here() -> &'static str {
        match machine_architecture() {
            "amd64" => "02",
            "arm64" => "04",
            other => panic!("no test for {other}"),
        }
    }

    #[test]
    fn the_system_partition_is_found() {
        let squashfs = found(&sif(here(), SQUASHFS, 2, 713, 100)).unwrap();
        assert_eq!(squashfs.offset, 713);
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_in_words() {
        for (bytes, word) in [
            (sif(here(), 2, 2, 713, 100), "ext3"),
            (sif(here(), 5, 2, 713, 100), "encrypted"),
            (sif(here(), SQUASHFS, 3, 713, 100), "no root file system"),
            (sif("11", SQUASHFS, 2, 713, 100), "s390x"),
            (sif(here(), SQUASHFS, 2, 713, 101), "reading"),
            (sif(here(), SQUASHFS, 2, i64::MAX, i64::MAX), "reading"),
            (sif(here(), SQUASHFS, 2, -1, 100), "no SIF"),
            (b"#!/bin/sh".to_vec(), "no SIF"),
            (vec![0; 4096], "no SIF"),
        ] {
            let said = found(&bytes).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
        let mut cut = sif(here(), SQUASHFS, 2, 713, 100);
        cut.truncate(300);
        assert!(matches!(found(&cut), Err(Error::NoSif { .. })));
    }
}
