//! The store's files: names, atomic writing, what lies in them.
//!
//! - `sha256-HEX.sqfs`, `sha256-HEX.json`: an image (complete once the json is there)
//! - `refs/HASH.json`: what a reference was last resolved to, named by the reference's sha256
//! - `leases/sha256-HEX.lease`: who pulls it; or who writes the reference of that hash
//! - `claims/HOLDER`: what a node or process has mounted (`claims`)
//! - `tmp/HEX.NONCE`: half-made, whoever holds the lease of HEX owns it

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::Error;
use crate::layer::hex;
use crate::lease::nonce;

/// Names in the store.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub root: PathBuf,
}

/// What the store knows of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub digest: String,
    /// Digest of the config blob.
    pub config_digest: String,
    /// The config as it came.
    pub config: serde_json::Value,
    /// Bytes of the squashfs.
    pub size: u64,
}

/// What a reference was resolved to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RefRecord {
    pub reference: String,
    /// Digest the registry has for it; an index's where it is one.
    pub resolved: String,
    /// Digest of the image for this platform.
    pub digest: String,
}

impl Files {
    pub fn make_folders(&self) -> Result<(), Error> {
        for dir in [
            self.root.clone(),
            self.root.join("refs"),
            self.root.join("leases"),
            self.root.join("tmp"),
        ] {
            make_private_dir(&dir)?;
        }
        Ok(())
    }

    pub fn sqfs(&self, hex: &str) -> PathBuf {
        self.root.join(format!("sha256-{hex}.sqfs"))
    }

    pub fn record(&self, hex: &str) -> PathBuf {
        self.root.join(format!("sha256-{hex}.json"))
    }

    pub fn lease(&self, hex: &str) -> PathBuf {
        self.root.join("leases").join(format!("sha256-{hex}.lease"))
    }

    pub fn claims(&self) -> PathBuf {
        self.root.join("claims")
    }

    pub fn reference(&self, reference: &str) -> PathBuf {
        let name = reference_hex(reference);
        self.root.join("refs").join(format!("{name}.json"))
    }

    pub fn temp(&self, hex: &str) -> Result<Temp, Error> {
        let dir = self.root.join("tmp");
        let nonce = nonce().map_err(|e| Error::io("naming a file in", &dir, e))?;
        Ok(Temp {
            path: dir.join(format!("{hex}.{nonce}")),
        })
    }

    /// Removes what dead holders left half-made: the temporary files of `hex`, or (none given) those without a lease.
    pub fn remove_stale_temps(&self, of: Option<&str>) -> Result<(), Error> {
        for path in listed(&self.root.join("tmp"))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let owner = name.split('.').next().unwrap_or_default();
            let stale = match of {
                Some(hex) => owner == hex,
                None => !self.lease(owner).exists(),
            };
            if stale {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// The records of all references; one that is just being removed is passed over.
    pub fn references(&self) -> Result<Vec<(PathBuf, RefRecord)>, Error> {
        let mut records = Vec::new();
        for path in listed(&self.root.join("refs"))? {
            if let Some(record) = read_json(&path)? {
                records.push((path, record));
            }
        }
        Ok(records)
    }

    /// Writes `value` where `path` is, whole or not at all.
    pub fn write_json(&self, hex: &str, path: &Path, value: &impl Serialize) -> Result<(), Error> {
        let bytes =
            serde_json::to_vec_pretty(value).map_err(|e| Error::io("writing", path, e.into()))?;
        let temp = self.temp(hex)?;
        let mut file = temp.create()?;
        file.write_all(&bytes)
            .map_err(|e| Error::io("writing", path, e))?;
        temp.place(file, path)
    }
}

/// A file being made; removed unless [`Temp::place`]d.
#[derive(Debug)]
pub(super) struct Temp {
    pub path: PathBuf,
}

impl Temp {
    pub fn create(&self) -> Result<File, Error> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        options
            .open(&self.path)
            .map_err(|e| Error::io("creating", &self.path, e))
    }

    /// Syncs it and gives it its final name.
    pub fn place(self, file: File, target: &Path) -> Result<(), Error> {
        let error = |e| Error::io("writing", target, e);
        file.sync_all().map_err(error)?;
        drop(file); // NFS reports a full disk at the latest here, through sync_all
        fs::rename(&self.path, target).map_err(error)?;
        let folder = target.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|d| d.sync_all()).map_err(error)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        // Gone already where it was placed.
        let _ = fs::remove_file(&self.path);
    }
}

/// What the files of a reference are named by.
pub(super) fn reference_hex(reference: &str) -> String {
    hex(&Sha256::digest(reference.as_bytes()))
}

/// The JSON file at `path`; none if there is none.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| Error::io("reading", path, e))?,
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| Error::Record {
            path: path.to_owned(),
            source,
        })
}

/// Removes a file; one that isn't there is no error.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", path, e)),
        _ => Ok(()),
    }
}

pub(super) fn listed(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let error = |e| Error::io("listing", dir, e);
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(error)? {
        paths.push(entry.map_err(error)?.path());
    }
    Ok(paths)
}

/// Makes a folder only its owner can enter, and its parents so, too; one that is there is left as it is.
pub(super) fn make_private_dir(dir: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| Error::io("making", dir, e))
}
