//! GC, and its like after a restart of the bubble.

use hpk_cni_types::{Command, ValidAttachment};
use serde_json::Value;

use super::Run;
use crate::netlink::Netlink;
use crate::plugin::attachments::{Record, host_name};
use crate::plugin::error::{Error, chain};
use crate::plugin::ipam::store::Owner;
use crate::plugin::{delegate, locks};

impl Run<'_> {
    /// DELs what isn't among the valid attachments. Goes on after a failure.
    pub(super) fn gc(&self) -> Result<(), Error> {
        let conf = &self.parsed.conf;
        let valid = conf
            .valid_attachments
            .as_ref()
            .ok_or_else(|| Error::Invalid("GC wants cni.dev/valid-attachments".to_owned()))?;
        let mut failures = Vec::new();
        let mut total = 0;
        let mut note = |what: String, result: Result<(), Error>| {
            total += 1;
            if let Err(error) = result {
                failures.push(format!("{what}: {error}: {}", chain(&error)));
            }
        };
        for record in self.attachments.load_all(&conf.name)? {
            if !record.is_among(valid) && self.is_callers(&record) {
                let what = format!("{} {}", record.container_id, record.ifname);
                note(what, self.release_stale(&record));
            }
        }
        note("interfaces".to_owned(), self.gc_links());
        note("delegated plugins".to_owned(), self.gc_delegated());
        match failures.is_empty() {
            true => Ok(()),
            false => Err(Error::Gc { total, failures }),
        }
    }

    /// What one caller doesn't know may be another's.
    fn is_callers(&self, record: &Record) -> bool {
        let caller = record.tap.as_ref().and_then(|tap| tap.caller.as_ref());
        caller == self.parsed.conf.plugin.pod_side_of.as_ref()
    }

    fn release_stale(&self, record: &Record) -> Result<(), Error> {
        let _lock = locks::lock(&self.parsed.data_dir, record.scope())?;
        self.release(record)
    }

    /// What is valid, and what is other callers'.
    fn kept(&self) -> Result<Vec<ValidAttachment>, Error> {
        let conf = &self.parsed.conf;
        let mut kept = conf.valid_attachments.clone().unwrap_or_default();
        for record in self.attachments.load_all(&conf.name)? {
            if !self.is_callers(&record) {
                kept.push(ValidAttachment {
                    container_id: record.container_id,
                    ifname: record.ifname,
                });
            }
        }
        Ok(kept)
    }

    /// Removes the bubble's ends of attachments that are neither valid nor on
    /// record any more.
    fn gc_links(&self) -> Result<(), Error> {
        let conf = &self.parsed.conf;
        let valid = self.kept()?;
        let kept: Vec<String> = valid
            .iter()
            .map(|it| host_name(&conf.name, &it.container_id, &it.ifname))
            .collect();
        let netlink = Netlink::open()?;
        for link in netlink.links()? {
            let words: Vec<&str> = link.alias.split(' ').collect();
            let [network, container_id, ifname] = words[..] else {
                continue;
            };
            let ours =
                network == conf.name && link.name == host_name(network, container_id, ifname);
            if ours && !kept.contains(&link.name) {
                netlink.remove_link(&link.name)?;
            }
        }
        Ok(())
    }

    /// Lets a delegated plugin collect what it knows of, with what GC was told.
    fn gc_delegated(&self) -> Result<(), Error> {
        let conf = &self.parsed.conf;
        let told = |mut given: Value| {
            for (key, value) in &conf.source {
                if key.starts_with("cni.dev/") {
                    given[key] = value.clone();
                }
            }
            given
        };
        // Without Flannel's lease there is no telling what they would be told.
        let Ok(config) = self.parsed.resolve() else {
            return Ok(());
        };
        let valid = &self.kept()?;
        let ipam_conf = self.parsed.ipam_conf(&config);
        match &conf.plugin.delegate {
            None => self.ipam(&ipam_conf).gc(valid, &told(ipam_conf.clone())),
            Some(block) => {
                let given = told(self.parsed.delegate_conf(block, &config)?);
                // host-local, which the delegate runs, has no GC.
                self.ipam(&ipam_conf).gc(valid, &given)?;
                let plugin = delegate::plugin_of(&given);
                delegate::run_if_known(plugin, self.folders(), Command::Gc, &given)
            }
        }
    }

    /// Gives back what attachments of the bubble's life before had. Whoever is
    /// at work holds a lock; what is alive has an interface.
    pub(super) fn sweep(&self, netlink: &Netlink) {
        let swept = || -> Result<(), Error> {
            let mut alive = vec![Owner {
                container_id: self.invocation.container_id.clone(),
                ifname: self.invocation.ifname.clone(),
            }];
            for record in self.attachments.load_every()? {
                let lock = locks::try_lock(&self.parsed.data_dir, record.scope())?;
                let is_free = lock.is_some() && !record.delegated;
                if is_free && netlink.link(&record.host_name)?.is_none() {
                    self.release(&record)?;
                } else if record.network == self.parsed.conf.name {
                    alive.push(record.owner());
                }
            }
            let conf = Value::Object(self.parsed.conf.source.clone());
            self.ipam(&conf).keep_only(&alive)
        };
        if let Err(error) = swept() {
            // ADD can do without; GC will come across it again.
            eprintln!(
                "cni-hpk: clear what a former bubble left: {error}: {}",
                chain(&error)
            );
        }
    }
}
