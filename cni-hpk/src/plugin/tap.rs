//! Datapath `tap`: what the plugin does for it beside plan and apply.
//!
//! The bridge's end is always made by a plugin in the bubble's namespaces, and
//! joined by the resident daemon of [`crate::relay`]. The pod's end is made by
//! the same run where it can enter the pod's namespace, and its descriptor is
//! passed on; else, or for frames over the socket, by a process of its own.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::attachments::Record;
use super::config::{Datapath, Keys};
use super::error::Error;
use super::plan::{Join, PodInterface};
use crate::netlink::{LinkKind, Netlink, in_namespace};
use crate::relay::client::Daemon;
use crate::relay::pod::{PodSide, PodTap, stop};
use crate::relay::resident::{open_pod_tap, open_tap};
use crate::relay::wire::{Attachment, Form};
use crate::relay::{folder_of, launch};

/// What is on record of an attachment with a TAP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TapRecord {
    pub form: Form,
    /// Who outside the bubble has the pod's side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// The process on the pod's side, if it is ours to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodSide>,
}

impl TapRecord {
    /// What the configuration asks for; none for another datapath.
    pub fn wanted(keys: &Keys) -> Option<Self> {
        let far = keys.pod_side_of.is_some();
        (keys.datapath == Datapath::Tap || far).then(|| Self {
            form: keys.tap_form,
            caller: keys.pod_side_of.clone(),
            pod: None,
        })
    }

    /// What of the attachment this run makes itself.
    pub fn join(&self) -> Join {
        match (&self.caller, self.form) {
            (None, Form::Descriptor) => Join::Taps,
            _ => Join::BridgeTap,
        }
    }
}

impl Record {
    /// As the relay knows it.
    pub fn attachment(&self) -> Attachment {
        Attachment {
            network: self.network.clone(),
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }
}

/// Makes a TAP that stays when we end.
pub fn make(name: &str) -> Result<(), Error> {
    Ok(open_tap(name, true).map(drop)?)
}

/// Makes one in a pod.
pub fn make_in(netns: &Path, name: &str) -> Result<(), Error> {
    let made = in_namespace(netns, || open_tap(name, true).map(drop));
    made.map_err(|source| Error::Namespace {
        path: netns.to_owned(),
        hint: "",
        source,
    })??;
    Ok(())
}

/// Held by the process on the pod's side.
pub fn lock(data_dir: &Path, attachment: &Attachment) -> PathBuf {
    folder_of(data_dir).join(format!("{attachment}.lock"))
}

/// The process that makes and holds the pod's end.
pub fn pod_side(
    folder: PathBuf,
    lock: PathBuf,
    attachment: Attachment,
    netns: &Path,
    form: Form,
    wanted: &PodInterface,
) -> PodSide {
    PodSide {
        folder,
        lock,
        netns: netns.to_owned(),
        attachment,
        form,
        interface: PodTap {
            name: wanted.veth.pod_name.clone(),
            mac: wanted.veth.pod_mac,
            mtu: wanted.veth.mtu,
            addresses: wanted.addresses.clone(),
            routes: wanted.routes.clone(),
        },
    }
}

/// Joins the ends of an attachment whose pod this run can reach.
pub fn join(
    record: &Record,
    netns: &Path,
    data_dir: &Path,
    folders: &[PathBuf],
) -> Result<(), Error> {
    let folder = folder_of(data_dir);
    match record.tap.as_ref().and_then(|tap| tap.pod.as_ref()) {
        Some(side) => {
            if !Daemon::of(&folder).is_there() {
                launch::resident(data_dir, folders)?;
            }
            launch::pod_side(side, folders)?;
        }
        None => {
            let tap = open_pod_tap(netns, &record.ifname)?;
            Daemon::of(&folder).join(&record.attachment(), &tap, data_dir, folders)?;
        }
    }
    Ok(())
}

/// Parts the ends, and removes the pod's where it can be reached.
pub fn part(record: &Record, data_dir: &Path) -> Result<(), Error> {
    leave(record, data_dir)?;
    let Some(tap) = &record.tap else {
        return Ok(());
    };
    if tap.form == Form::Frames {
        return Ok(stop(&lock(data_dir, &record.attachment()))?);
    }
    let netns = record.netns.as_ref().filter(|_| tap.caller.is_none());
    match netns.map(|netns| Netlink::open_in(netns)) {
        // Another of that name isn't ours.
        Some(Ok(pod)) => match pod.link(&record.ifname)? {
            Some(link) if link.kind == LinkKind::Tap => Ok(pod.remove_link(&link.name)?),
            _ => Ok(()),
        },
        // It is gone, and the pod's end with it.
        Some(Err(error)) if is_gone(&error.source) => Ok(()),
        Some(Err(error)) => Err(error.into()),
        None => Ok(()),
    }
}

/// A path where a namespace was pinned once is gone, or no namespace.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, NotADirectory, NotFound};
    matches!(error.kind(), InvalidInput | NotADirectory | NotFound)
}

/// Tells the daemon; after the record's end once more, so that one with
/// nothing left to do ends.
pub fn leave(record: &Record, data_dir: &Path) -> Result<(), Error> {
    Ok(Daemon::of(&folder_of(data_dir)).leave(&record.attachment())?)
}
