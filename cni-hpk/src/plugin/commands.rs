//! ADD, DEL, CHECK, GC and STATUS: a file each, but for DEL and what they
//! share.

mod add;
mod check;
mod gc;
mod status;

use std::path::PathBuf;

use hpk_cni_types::{Command, Invocation, SpecVersion};
use serde_json::Value;

use super::attachments::{Attachments, Record, host_name};
use super::config::{Config, Parsed};
use super::delegate;
use super::error::Error;
use super::far::Far;
use super::ipam::Ipam;
use super::locks::{self, Scope};
use super::pod::PodNamespace;
use super::tap::{self, TapRecord};
use crate::netlink::Netlink;

/// Runs the command; what it answers goes to stdout.
pub fn run(invocation: &Invocation, stdin: &[u8]) -> Result<Option<Value>, Error> {
    let parsed = Parsed::parse(stdin)?;
    let version = parsed.conf.cni_version;
    if let Some(folder) = &parsed.conf.plugin.relay {
        return run_far(&Far::new(invocation, &parsed, folder), invocation, version);
    }
    let command = invocation.command;
    let known = match command {
        Command::Check => version.has_check(),
        Command::Gc | Command::Status => version.has_gc_and_status(),
        _ => true,
    };
    if !known {
        let command = command.as_str();
        return Err(Error::NotInVersion { command, version });
    }
    // Older versions' results leave out what the pod's side needs.
    let version = match parsed.conf.plugin.pod_side_of {
        Some(_) => SpecVersion::LATEST,
        None => version,
    };
    let run = Run {
        attachments: Attachments::new(&parsed.data_dir),
        parsed,
        invocation,
    };
    match command {
        Command::Add => Ok(Some(run.add()?.to_json(version))),
        Command::Del => run.del().map(|()| None),
        Command::Check => run.check().map(|()| None),
        Command::Gc => run.gc().map(|()| None),
        Command::Status => run.status().map(|()| None),
        Command::Version => Ok(None),
    }
}

/// Of a network whose bridge is in a bubble we are not in.
fn run_far(
    far: &Far<'_>,
    invocation: &Invocation,
    version: SpecVersion,
) -> Result<Option<Value>, Error> {
    match invocation.command {
        Command::Add => Ok(Some(far.add(netns(invocation)?)?.to_json(version))),
        Command::Del => far.del().map(|()| None),
        Command::Check => far.check(netns(invocation)?).map(|()| None),
        Command::Gc => far.gc().map(|()| None),
        Command::Status => far.status().map(|()| None),
        Command::Version => Ok(None),
    }
}

fn netns(invocation: &Invocation) -> Result<&PathBuf, Error> {
    let netns = invocation.netns.as_ref();
    netns.ok_or_else(|| Error::Invalid("CNI_NETNS is not set".to_owned()))
}

struct Run<'a> {
    invocation: &'a Invocation,
    parsed: Parsed,
    attachments: Attachments,
}

impl Run<'_> {
    fn folders(&self) -> &[PathBuf] {
        &self.invocation.path
    }

    fn netns(&self) -> Result<&PathBuf, Error> {
        netns(self.invocation)
    }

    /// The pod's namespace; none where its side is a caller's outside.
    fn pod(&self) -> Result<Option<PodNamespace>, Error> {
        match self.parsed.conf.plugin.pod_side_of {
            Some(_) => Ok(None),
            None => PodNamespace::open(self.netns()?).map(Some),
        }
    }

    /// What is wanted, with the ranges of the network's other attachments where
    /// ranges come with them: always, or never.
    fn config(&self) -> Result<Config, Error> {
        let mut others = Vec::new();
        if self.parsed.has_asked_ranges() {
            for record in self.attachments.load_all(&self.parsed.conf.name)? {
                others.extend(record.pools()?);
            }
        }
        self.parsed.resolve_beside(others)
    }

    fn ipam<'b>(&'b self, conf: &'b Value) -> Ipam<'b> {
        Ipam::new(conf, self.folders(), &self.parsed.data_dir)
    }

    /// Nobody else works at this attachment meanwhile.
    fn lock(&self) -> Result<locks::Lock, Error> {
        let Invocation {
            container_id,
            ifname,
            ..
        } = self.invocation;
        let scope = Scope::Attachment(&self.parsed.conf.name, container_id, ifname);
        locks::lock(&self.parsed.data_dir, scope)
    }

    fn record(&self, conf: Value, delegated: bool) -> Record {
        let network = &self.parsed.conf.name;
        let Invocation {
            container_id,
            ifname,
            netns,
            ..
        } = self.invocation;
        Record {
            network: network.clone(),
            container_id: container_id.clone(),
            ifname: ifname.clone(),
            netns: netns.clone(),
            host_name: host_name(network, container_id, ifname),
            conf,
            delegated,
            tap: TapRecord::wanted(&self.parsed.conf.plugin).filter(|_| !delegated),
        }
    }

    fn recorded(&self) -> Result<Option<Record>, Error> {
        let Invocation {
            container_id,
            ifname,
            ..
        } = self.invocation;
        let network = &self.parsed.conf.name;
        self.attachments.load(network, container_id, ifname)
    }

    /// Removes what ADD made, whatever is left of it.
    fn del(&self) -> Result<(), Error> {
        let _lock = self.lock()?;
        match self.recorded()? {
            Some(record) => self.release(&record),
            None => self.del_unknown(),
        }
    }

    /// An attachment not on record was never begun, or its record was lost
    /// with the node's disk: what is left of it has its name.
    fn del_unknown(&self) -> Result<(), Error> {
        let mut conf = Value::Object(self.parsed.conf.source.clone());
        conf["ipam"] = self.parsed.conf.plugin.ipam.clone().into();
        let delegated = self.parsed.conf.plugin.delegate.is_some();
        let record = self.record(conf, false);
        Netlink::open()?.remove_link(&record.host_name)?;
        match delegated {
            // Never asked, for there is no telling what it would have been told.
            true => Ok(()),
            false => self.ipam(&record.conf).del(&record),
        }
    }

    /// Interface first, then the address: one given back is given anew at
    /// once. The record goes last.
    fn release(&self, record: &Record) -> Result<(), Error> {
        if record.delegated {
            let plugin = delegate::plugin_of(&record.conf);
            delegate::del_for(plugin, self.folders(), record)?;
        } else {
            if record.tap.is_some() {
                tap::part(record, &self.parsed.data_dir)?;
            }
            Netlink::open()?.remove_link(&record.host_name)?;
            self.ipam(&record.conf).del(record)?;
        }
        self.forget(record)
    }

    fn forget(&self, record: &Record) -> Result<(), Error> {
        self.attachments.remove(record)?;
        match record.tap {
            Some(_) => tap::leave(record, &self.parsed.data_dir),
            None => Ok(()),
        }
    }
}
