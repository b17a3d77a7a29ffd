//! What was added, on disk: a file per attachment in
//! `<dataDir>/attachments`, written before anything is done for it. DEL needs
//! it when Flannel's lease has gone or changed; GC finds what nobody wants.

use std::io;
use std::path::{Path, PathBuf};

use hpk_cni_types::ValidAttachment;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::Error;

/// One attachment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub network: String,
    pub container_id: String,
    pub ifname: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// The bubble's end, if we made the interface.
    pub host_name: String,
    /// What the IPAM plugin, or the `delegate`, was given on stdin.
    pub conf: Value,
    /// Whether `conf` is a `delegate`'s.
    pub delegated: bool,
}

impl Record {
    pub fn is_among(&self, valid: &[ValidAttachment]) -> bool {
        valid
            .iter()
            .any(|entry| entry.container_id == self.container_id && entry.ifname == self.ifname)
    }
}

/// The folder of attachments.
#[derive(Clone, Debug)]
pub struct Attachments {
    folder: PathBuf,
}

impl Attachments {
    pub fn new(data_dir: &Path) -> Self {
        Self {
            folder: data_dir.join("attachments"),
        }
    }

    fn path(&self, network: &str, container_id: &str, ifname: &str) -> PathBuf {
        // `:` is in none of the three.
        self.folder
            .join(format!("{network}:{container_id}:{ifname}"))
    }

    pub fn store(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.network, &record.container_id, &record.ifname);
        let part = self.folder.join(format!(
            ".{}:{}:{}",
            record.network, record.container_id, record.ifname
        ));
        let write = || {
            std::fs::create_dir_all(&self.folder)?;
            std::fs::write(&part, serde_json::to_vec(record)?)?;
            std::fs::rename(&part, &path)
        };
        write().map_err(|source| Error::File {
            operation: "write",
            path: path.clone(),
            source,
        })
    }

    pub fn load(
        &self,
        network: &str,
        container_id: &str,
        ifname: &str,
    ) -> Result<Option<Record>, Error> {
        read(&self.path(network, container_id, ifname))
    }

    /// All attachments of a network.
    pub fn load_all(&self, network: &str) -> Result<Vec<Record>, Error> {
        let fail = |source| Error::File {
            operation: "list",
            path: self.folder.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(&format!("{network}:")) {
                records.extend(read(&path)?);
            }
        }
        Ok(records)
    }

    pub fn remove(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.network, &record.container_id, &record.ifname);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::File {
                operation: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> Result<Option<Record>, Error> {
    let fail = |source| Error::File {
        operation: "read",
        path: path.to_owned(),
        source,
    };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| fail(error.into()))
}
