//! What was added, on disk: a file per attachment in
//! `<dataDir>/attachments`, written before anything is done for it. DEL needs
//! it when Flannel's lease has gone or changed; GC finds what nobody wants.
//!
//! A record that is cut short is that of a run which was killed while writing
//! it, and has done nothing else: its name says all that is needed.

use std::io;
use std::path::{Path, PathBuf};

use hpk_cni_types::{SpecVersion, ValidAttachment};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::Error;
use super::ipam::ranges_in;
use super::ipam::store::Owner;
use super::locks::{Scope, hash};
use super::pools::Pool;
use super::tap::TapRecord;
use crate::netlink::Mac;

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
    /// Of datapath `tap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<TapRecord>,
}

impl Record {
    pub fn owner(&self) -> Owner {
        Owner {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }

    pub fn scope(&self) -> Scope<'_> {
        Scope::Attachment(&self.network, &self.container_id, &self.ifname)
    }

    /// Those of which host-local gave it addresses.
    pub fn pools(&self) -> Result<Vec<Pool>, Error> {
        let block = self.conf.get("ipam").and_then(Value::as_object);
        let sets = block.map(ranges_in).transpose()?.unwrap_or_default();
        let pools = sets.iter().flatten().map(Pool::read);
        pools.collect::<Result<_, _>>().map_err(Error::Invalid)
    }

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
        let write = || {
            let text = serde_json::to_vec(record)?;
            match std::fs::write(&path, &text) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    std::fs::create_dir_all(&self.folder)?;
                    std::fs::write(&path, &text)
                }
                other => other,
            }
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
        let mut records = self.load_every()?;
        records.retain(|record| record.network == network);
        Ok(records)
    }

    /// All attachments of all networks.
    pub fn load_every(&self) -> Result<Vec<Record>, Error> {
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
            records.extend(read(&entry.map_err(fail)?.path())?);
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

/// `None`: no such file, or none of ours by its name.
fn read(path: &Path) -> Result<Option<Record>, Error> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::File {
                operation: "read",
                path: path.to_owned(),
                source,
            });
        }
    };
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(serde_json::from_slice(&text).ok().or_else(|| begun(name?)))
}

/// What the name of a record says.
fn begun(name: &str) -> Option<Record> {
    let [network, container_id, ifname] = name.split(':').collect::<Vec<_>>().try_into().ok()?;
    Some(Record {
        network: network.to_owned(),
        container_id: container_id.to_owned(),
        ifname: ifname.to_owned(),
        netns: None,
        host_name: host_name(network, container_id, ifname),
        conf: json!({"name": network, "cniVersion": SpecVersion::LATEST}),
        delegated: false,
        tap: None,
    })
}

/// Name of the bubble's end of a pod's interface: the same for the same
/// attachment, so that DEL finds it when the pod's namespace is gone.
pub fn host_name(network: &str, container_id: &str, ifname: &str) -> String {
    // 48 bits of the hash, in the 15 bytes an interface name has.
    let hash = hash(&format!("{network}/{container_id}/{ifname}"));
    format!("hpk{:012x}", (hash ^ (hash >> 48)) & 0xffff_ffff_ffff)
}

/// Hardware address of that end, likewise.
pub fn host_mac(host_name: &str) -> Mac {
    Mac::of_number(hash(host_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_fit_and_differ_by_interface() {
        let name = host_name("hpk", "0123456789abcdef", "eth0");
        assert_eq!(name.len(), 15);
        assert_eq!(name, host_name("hpk", "0123456789abcdef", "eth0"));
        assert_ne!(name, host_name("hpk", "0123456789abcdef", "eth1"));
    }

    #[test]
    fn a_record_that_is_cut_short_is_known_by_its_name() {
        let folder = std::env::temp_dir().join(format!("hpk-records-{}", std::process::id()));
        let attachments = Attachments::new(&folder);
        attachments.store(&begun("n:a:eth0").unwrap()).unwrap();
        std::fs::write(folder.join("attachments/n:b:eth0"), "{\"network\":").unwrap();
        std::fs::write(folder.join("attachments/other"), "").unwrap();
        let mut records = attachments.load_all("n").unwrap();
        records.sort_by(|one, other| one.container_id.cmp(&other.container_id));
        assert_eq!(records[1], begun("n:b:eth0").unwrap());
        assert_eq!(records.len(), 2);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
