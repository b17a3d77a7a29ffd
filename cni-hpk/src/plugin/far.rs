//! Runs outside the bubble whose network they are about: the relay in the
//! bubble does the bridge's side, this run the pod's.

use std::path::{Path, PathBuf};

use hpk_cni_types::{AddResult, Invocation, SpecVersion, ValidAttachment};
use serde_json::Value;

use super::config::Parsed;
use super::error::Error;
use super::plan::{Join, PodInterface, pod_routes};
use super::pod::PodNamespace;
use super::tap;
use crate::netlink::Mac;
use crate::netlink::link::VethPair;
use crate::relay::client::Daemon;
use crate::relay::folder_of;
use crate::relay::launch;
use crate::relay::pod::stop;
use crate::relay::wire::{Attachment, PluginCommand, PluginRequest};

/// One run.
#[derive(Debug)]
pub struct Far<'a> {
    invocation: &'a Invocation,
    parsed: &'a Parsed,
    /// Of the bubble's relay.
    folder: PathBuf,
}

impl<'a> Far<'a> {
    pub fn new(invocation: &'a Invocation, parsed: &'a Parsed, folder: &Path) -> Self {
        Self {
            invocation,
            parsed,
            folder: folder.to_owned(),
        }
    }

    fn own(&self) -> Attachment {
        Attachment {
            network: self.parsed.conf.name.clone(),
            container_id: self.invocation.container_id.clone(),
            ifname: self.invocation.ifname.clone(),
        }
    }

    /// The lock of the process on the pod's side.
    fn lock(&self, attachment: &Attachment) -> PathBuf {
        tap::lock(&self.parsed.data_dir, attachment)
    }

    fn ask(&self, command: PluginCommand) -> Result<Option<(Attachment, Value)>, Error> {
        let conf = &self.parsed.conf;
        let previous = conf.prev_result()?;
        let request = PluginRequest {
            command,
            cni_version: conf.cni_version.as_str().to_owned(),
            caller: conf.name.clone(),
            container_id: self.invocation.container_id.clone(),
            ifname: self.invocation.ifname.clone(),
            prev_result: previous.map(|result| result.to_json(SpecVersion::LATEST)),
            valid: conf.valid_attachments.clone().unwrap_or_default(),
        };
        Ok(Daemon::of(&self.folder).plugin(request)?)
    }

    pub fn add(&self, netns: &Path) -> Result<AddResult, Error> {
        if !self.folder.exists() {
            return Err(Error::NoBubble(self.folder.clone()));
        }
        let (attachment, answer) = self
            .ask(PluginCommand::Add)?
            .ok_or_else(|| Error::Invalid("the relay's plugin gave no result".to_owned()))?;
        match self.finish(netns, attachment, answer) {
            Ok(result) => Ok(result),
            Err(error) => {
                // The first error is the one to tell; GC finds what stays.
                let _ = self.del();
                Err(error)
            }
        }
    }

    fn finish(
        &self,
        netns: &Path,
        attachment: Attachment,
        answer: Value,
    ) -> Result<AddResult, Error> {
        let mut result: AddResult = serde_json::from_value(answer).map_err(|error| {
            Error::Invalid(format!("the relay's plugin gave no valid result: {error}"))
        })?;
        let wanted = interface(&result, &self.invocation.ifname)?;
        if let Some(last) = result.interfaces.last_mut() {
            last.sandbox = netns.display().to_string();
        }
        let side = tap::pod_side(
            self.folder.clone(),
            self.lock(&self.own()),
            attachment,
            netns,
            self.parsed.conf.plugin.tap_form,
            &wanted,
        );
        launch::pod_side(&side, &self.invocation.path)?;
        Ok(result)
    }

    /// A bubble that is gone has taken its side along.
    pub fn del(&self) -> Result<(), Error> {
        let asked = match self.folder.exists() {
            true => self.ask(PluginCommand::Del).map(drop),
            false => Ok(()),
        };
        let stopped = stop(&self.lock(&self.own()));
        asked.and(stopped.map_err(Error::from))
    }

    pub fn check(&self, netns: &Path) -> Result<(), Error> {
        let previous = self.parsed.conf.prev_result()?;
        let previous =
            previous.ok_or_else(|| Error::Invalid("CHECK wants prevResult".to_owned()))?;
        self.ask(PluginCommand::Check)?;
        let pod = PodNamespace::open(netns)?;
        let wanted = interface(&previous, &self.invocation.ifname)?;
        let lacks = super::pod::missing_in(&pod, &wanted)?;
        match lacks.is_empty() {
            true => Ok(()),
            false => Err(Error::Check(lacks.join(", "))),
        }
    }

    /// Ends what isn't valid on either side.
    pub fn gc(&self) -> Result<(), Error> {
        let valid = self.parsed.conf.valid_attachments.as_ref();
        let valid =
            valid.ok_or_else(|| Error::Invalid("GC wants cni.dev/valid-attachments".to_owned()))?;
        let asked = match self.folder.exists() {
            true => self.ask(PluginCommand::Gc).map(drop),
            false => Ok(()),
        };
        asked.and(self.stop_stale(valid))
    }

    fn stop_stale(&self, valid: &[ValidAttachment]) -> Result<(), Error> {
        let folder = folder_of(&self.parsed.data_dir);
        let fail = |source| Error::File {
            operation: "list",
            path: folder.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(fail(error)),
        };
        let kept: Vec<PathBuf> = valid
            .iter()
            .map(|entry| {
                self.lock(&Attachment {
                    network: self.parsed.conf.name.clone(),
                    container_id: entry.container_id.clone(),
                    ifname: entry.ifname.clone(),
                })
            })
            .collect();
        let ours = format!("{}:", self.parsed.conf.name);
        let mut failure = None;
        for entry in entries {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_lock = name.starts_with(&ours) && name.ends_with(".lock");
            if is_lock
                && !kept.contains(&path)
                && let Err(error) = stop(&path)
            {
                failure = failure.or(Some(error));
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    pub fn status(&self) -> Result<(), Error> {
        match self.folder.exists() {
            true => self.ask(PluginCommand::Status).map(drop),
            false => Err(Error::NoBubble(self.folder.clone())),
        }
    }
}

/// The pod's interface as the bubble's plugin gave it.
fn interface(result: &AddResult, ifname: &str) -> Result<PodInterface, Error> {
    let odd = |what: &str| Error::Invalid(format!("the relay's plugin gave {what}"));
    let mut addresses = Vec::new();
    for ip in &result.ips {
        let gateway = ip
            .gateway
            .ok_or_else(|| odd("an address without a gateway"))?;
        addresses.push((ip.address, gateway));
    }
    if addresses.is_empty() {
        return Err(odd("no address"));
    }
    let last = result
        .interfaces
        .last()
        .ok_or_else(|| odd("no interface"))?;
    // CHECK's, of an older version, has none, and doesn't look at it.
    let mtu = last.mtu.unwrap_or_default();
    let pod_mac = Mac::try_from(last.mac.clone()).map_err(|error| odd(&error))?;
    Ok(PodInterface {
        join: Join::BridgeTap,
        veth: VethPair {
            host_name: String::new(),
            host_mac: Mac::default(),
            pod_name: ifname.to_owned(),
            pod_mac,
            mtu,
            alias: String::new(),
        },
        routes: pod_routes(&addresses, &result.routes),
        addresses: addresses.into_iter().map(|(address, _)| address).collect(),
        bridge: String::new(),
    })
}
