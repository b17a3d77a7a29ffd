//! Results on disk, in libcni's format and place (`cniCacheV1`):
//! `<cache>/results/<network>-<container>-<interface>`.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::warn;

use crate::client::Attachment;
use crate::error::Error;
use crate::network::NetworkList;

const KIND: &str = "cniCacheV1";

/// A cached attachment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub kind: String,
    pub container_id: String,
    /// The network's conflist, base64 of its JSON.
    pub config: String,
    pub if_name: String,
    pub network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_args: Option<Vec<(String, String)>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability_args: Option<Map<String, Value>>,
    /// The last plugin's result, as it gave it.
    pub result: Value,
}

impl Entry {
    pub fn new(list: &NetworkList, attachment: &Attachment, result: Value) -> Self {
        Self {
            kind: KIND.to_owned(),
            container_id: attachment.container_id.clone(),
            config: base64::engine::general_purpose::STANDARD.encode(list.source.to_string()),
            if_name: attachment.ifname.clone(),
            network_name: list.name.clone(),
            netns: attachment.netns.display().to_string(),
            cni_args: Some(attachment.args.clone()).filter(|args| !args.is_empty()),
            capability_args: Some(attachment.capability_args.clone())
                .filter(|arguments| !arguments.is_empty()),
            result,
        }
    }

    /// The attachment as ADD was asked for it.
    pub fn attachment(&self) -> Attachment {
        Attachment {
            container_id: self.container_id.clone(),
            netns: PathBuf::from(&self.netns),
            ifname: self.if_name.clone(),
            args: self.cni_args.clone().unwrap_or_default(),
            capability_args: self.capability_args.clone().unwrap_or_default(),
        }
    }
}

/// The folder of cached results.
#[derive(Clone, Debug)]
pub struct Cache {
    results: PathBuf,
}

impl Cache {
    pub fn new(cache_dir: &Path) -> Self {
        Self {
            results: cache_dir.join("results"),
        }
    }

    fn path(&self, network: &str, container_id: &str, ifname: &str) -> PathBuf {
        self.results
            .join(format!("{network}-{container_id}-{ifname}"))
    }

    /// Writes an entry whole or not at all.
    pub fn store(&self, entry: &Entry) -> Result<(), Error> {
        let path = self.path(&entry.network_name, &entry.container_id, &entry.if_name);
        let fail = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Cache {
                operation,
                path,
                source,
            }
        };
        // As libcni makes it: environment and arguments may be somebody's secret.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.results)
            .map_err(fail("make folder", &self.results))?;
        let text = serde_json::to_vec(entry).map_err(|source| Error::CacheFormat {
            path: path.clone(),
            source,
        })?;
        // A leading dot: `load_all` passes over a file left half-written.
        let part = self.results.join(format!(
            ".{}-{}-{}.part",
            entry.network_name, entry.container_id, entry.if_name
        ));
        let write = || {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&part)?;
            file.write_all(&text)
        };
        write().map_err(fail("write", &part))?;
        std::fs::rename(&part, &path).map_err(fail("move into place", &path))
    }

    /// The entry of an attachment, if there is one.
    pub fn load(
        &self,
        network: &str,
        container_id: &str,
        ifname: &str,
    ) -> Result<Option<Entry>, Error> {
        read(&self.path(network, container_id, ifname))
    }

    /// All entries of a network. A file that isn't an entry is passed over, as
    /// libcni does: it would keep GC from all the others.
    pub fn load_all(&self, network: &str) -> Result<Vec<Entry>, Error> {
        let fail = |source| Error::Cache {
            operation: "list",
            path: self.results.clone(),
            source,
        };
        let folder = match std::fs::read_dir(&self.results) {
            Ok(folder) => folder,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut entries = Vec::new();
        for file in folder {
            let file = file.map_err(fail)?;
            if file.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            match read(&file.path()) {
                Ok(entry) => entries.extend(entry.filter(|it| it.network_name == network)),
                Err(Error::CacheFormat { path, source }) => {
                    warn!(path = %path.display(), %source, "not a cached result");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    /// Forgets an attachment; one that isn't there is fine.
    pub fn remove(&self, network: &str, container_id: &str, ifname: &str) -> Result<(), Error> {
        let path = self.path(network, container_id, ifname);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Cache {
                operation: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> Result<Option<Entry>, Error> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::Cache {
                operation: "read",
                path: path.to_owned(),
                source,
            });
        }
    };
    let wrong = |source| Error::CacheFormat {
        path: path.to_owned(),
        source,
    };
    let entry: Entry = serde_json::from_slice(&text).map_err(wrong)?;
    match entry.kind == KIND {
        true => Ok(Some(entry)),
        false => Err(wrong(serde::de::Error::custom(format!(
            "kind {:?} is not {KIND:?}",
            entry.kind
        )))),
    }
}
