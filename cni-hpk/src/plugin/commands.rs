//! ADD, DEL, CHECK, GC and STATUS.

use std::path::PathBuf;

use hpk_cni_types::{AddResult, Command, Interface, Invocation, IpConfig, SpecVersion};
use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;

use super::attachments::{Attachments, Record};
use super::config::{Config, Parsed};
use super::error::{Error, chain};
use super::plan::PodInterface;
use super::pod::{self, PodNamespace};
use super::{delegate, node};
use crate::netlink::Netlink;
use crate::netlink::link::VethPair;

/// Runs the command; what it answers goes to stdout.
pub async fn run(invocation: &Invocation, stdin: &[u8]) -> Result<Option<Value>, Error> {
    let parsed = Parsed::parse(stdin)?;
    let version = parsed.conf.cni_version;
    let run = Run {
        attachments: Attachments::new(&parsed.data_dir),
        parsed,
        invocation,
    };
    match invocation.command {
        Command::Add => Ok(Some(run.add().await?.to_json(version))),
        Command::Del => run.del().await.map(|()| None),
        Command::Check => run.check().await.map(|()| None),
        Command::Gc => run.gc().await.map(|()| None),
        Command::Status => run.status().map(|()| None),
        Command::Version => Ok(None),
    }
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
        let netns = self.invocation.netns.as_ref();
        netns.ok_or_else(|| Error::Invalid("CNI_NETNS is not set".to_owned()))
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
            host_name: pod::host_name(network, container_id, ifname),
            conf,
            delegated,
        }
    }

    async fn add(&self) -> Result<AddResult, Error> {
        let config = self.parsed.resolve()?;
        let netns = self.netns()?;
        if let Some(block) = &self.parsed.conf.plugin.delegate {
            let conf = self.parsed.delegate_conf(block, &config);
            let record = self.record(conf, true);
            self.attachments.store(&record)?;
            return delegate::add(
                delegate::plugin_of(&record.conf),
                self.folders(),
                &record.conf,
            );
        }
        // Before anything is made: a namespace that can't be entered.
        let pod = PodNamespace::open(netns)?;
        let netlink = Netlink::open()?;
        node::ensure(&netlink, &config, &self.parsed.data_dir).await?;
        let record = self.record(self.parsed.ipam_conf(&config), false);
        let taken = self
            .attachments
            .load(&record.network, &record.container_id, &record.ifname)?
            .is_some();
        self.attachments.store(&record)?;
        match self.attach(&netlink, &pod, &config, &record).await {
            Ok(result) => Ok(result),
            Err(error) => {
                // The first error is the one to tell. What stays is on record,
                // and an attachment that was there before stays whole.
                if !taken {
                    let _ = self.release(Some(&netlink), &record).await;
                }
                Err(error)
            }
        }
    }

    async fn attach(
        &self,
        netlink: &Netlink,
        pod: &PodNamespace,
        config: &Config,
        record: &Record,
    ) -> Result<AddResult, Error> {
        let ipam = delegate::plugin_of(&record.conf["ipam"]);
        let lease = delegate::add(ipam, self.folders(), &record.conf)?;
        let wanted = interface(config, record, &lease)?;
        pod::ensure(netlink, pod, &wanted).await?;
        self.result(pod, netlink, config, record, &wanted, lease)
            .await
    }

    async fn result(
        &self,
        pod: &PodNamespace,
        netlink: &Netlink,
        config: &Config,
        record: &Record,
        wanted: &PodInterface,
        lease: AddResult,
    ) -> Result<AddResult, Error> {
        let device = |name: &str, mac: Option<String>, sandbox: String| Interface {
            name: name.to_owned(),
            mac: mac.unwrap_or_default(),
            mtu: Some(config.mtu),
            sandbox,
            ..Interface::default()
        };
        let mac_of = async |name: &str| -> Result<Option<String>, Error> {
            Ok(netlink.link(name).await?.map(|link| link.mac.to_string()))
        };
        let pod_mac = pod.mac(&record.ifname).await?.map(|mac| mac.to_string());
        let interfaces = vec![
            device(&config.bridge, mac_of(&config.bridge).await?, String::new()),
            device(
                &record.host_name,
                mac_of(&record.host_name).await?,
                String::new(),
            ),
            device(&record.ifname, pod_mac, self.netns()?.display().to_string()),
        ];
        let mut routes = lease.routes;
        let default = IpNet::V4(Ipv4Net::default());
        if !routes.iter().any(|route| route.dst == default) {
            let gateway = Some(wanted.gateway.into());
            routes.push(hpk_cni_types::Route::new(default, gateway));
        }
        let dns = match self.parsed.conf.dns.is_empty() {
            true => lease.dns,
            false => self.parsed.conf.dns.clone(),
        };
        Ok(AddResult {
            cni_version: Some(SpecVersion::LATEST),
            interfaces,
            ips: vec![IpConfig {
                address: wanted.address.into(),
                gateway: Some(wanted.gateway.into()),
                interface: Some(2),
            }],
            routes,
            dns,
        })
    }

    /// Removes what ADD made, whatever is left of it.
    async fn del(&self) -> Result<(), Error> {
        let known = self.attachments.load(
            &self.parsed.conf.name,
            &self.invocation.container_id,
            &self.invocation.ifname,
        )?;
        match known {
            Some(record) => self.release(None, &record).await,
            None => self.del_unknown().await,
        }
    }

    /// An attachment not on record was never begun, or its record was lost
    /// with the node's disk: then nothing else of it is left but, maybe, the
    /// interface.
    async fn del_unknown(&self) -> Result<(), Error> {
        let Invocation {
            container_id,
            ifname,
            ..
        } = self.invocation;
        let host_name = pod::host_name(&self.parsed.conf.name, container_id, ifname);
        Ok(Netlink::open()?.remove_link(&host_name).await?)
    }

    /// Interface first, then the address: one given back is given anew at
    /// once. The record goes last.
    async fn release(&self, netlink: Option<&Netlink>, record: &Record) -> Result<(), Error> {
        if record.delegated {
            let plugin = delegate::plugin_of(&record.conf);
            delegate::run(plugin, self.folders(), Command::Del, &record.conf)?;
        } else {
            let opened;
            let netlink = match netlink {
                Some(netlink) => netlink,
                None => {
                    opened = Netlink::open()?;
                    &opened
                }
            };
            netlink.remove_link(&record.host_name).await?;
            let ipam = delegate::plugin_of(&record.conf["ipam"]);
            delegate::run(ipam, self.folders(), Command::Del, &record.conf)?;
        }
        self.attachments.remove(record)
    }

    async fn check(&self) -> Result<(), Error> {
        let conf = &self.parsed.conf;
        if !conf.cni_version.has_check() {
            return Err(Error::Invalid(format!(
                "CHECK came with CNI 0.4.0; this network is of {}",
                conf.cni_version
            )));
        }
        let config = self.parsed.resolve()?;
        let netns = self.netns()?;
        let record = self
            .attachments
            .load(
                &conf.name,
                &self.invocation.container_id,
                &self.invocation.ifname,
            )?
            .ok_or_else(|| Error::Check("it is not on record".to_owned()))?;
        let previous = conf
            .prev_result()?
            .ok_or_else(|| Error::Invalid("CHECK wants prevResult".to_owned()))?;
        if record.delegated {
            let mut given = record.conf.clone();
            given["prevResult"] = conf.prev_result.clone().unwrap_or_default();
            let plugin = delegate::plugin_of(&record.conf);
            return delegate::run(plugin, self.folders(), Command::Check, &given).map(drop);
        }
        let mut given = record.conf.clone();
        given["prevResult"] = conf.prev_result.clone().unwrap_or_default();
        let ipam = delegate::plugin_of(&record.conf["ipam"]);
        delegate::run(ipam, self.folders(), Command::Check, &given)?;
        let wanted = interface(&config, &record, &previous)?;
        let pod = PodNamespace::open(netns)?;
        let netlink = Netlink::open()?;
        let node_steps = node::missing(&netlink, &config).await?;
        if !node_steps.is_empty() {
            return Err(Error::Check(format!(
                "the bubble's side lacks {node_steps:?}"
            )));
        }
        let steps = pod::missing(&netlink, &pod, &wanted).await?;
        if !steps.is_empty() {
            let lacks: Vec<String> = steps.iter().map(ToString::to_string).collect();
            return Err(Error::Check(lacks.join(", ")));
        }
        Ok(())
    }

    /// DELs what isn't among the valid attachments. Goes on after a failure.
    async fn gc(&self) -> Result<(), Error> {
        let conf = &self.parsed.conf;
        let valid = conf
            .valid_attachments
            .as_ref()
            .ok_or_else(|| Error::Invalid("GC wants cni.dev/valid-attachments".to_owned()))?;
        let mut failures = Vec::new();
        let mut total = 0;
        for record in self.attachments.load_all(&conf.name)? {
            if record.is_among(valid) {
                continue;
            }
            total += 1;
            if let Err(error) = self.release_stale(&record).await {
                failures.push(format!(
                    "{} {}: {error}: {}",
                    record.container_id,
                    record.ifname,
                    chain(&error)
                ));
            }
        }
        match failures.is_empty() {
            true => Ok(()),
            false => Err(Error::Gc { total, failures }),
        }
    }

    /// The delegated plugins read the attachment in their environment, which
    /// GC's run hasn't got.
    async fn release_stale(&self, record: &Record) -> Result<(), Error> {
        if !record.delegated {
            Netlink::open()?.remove_link(&record.host_name).await?;
        }
        let plugin = match record.delegated {
            true => delegate::plugin_of(&record.conf),
            false => delegate::plugin_of(&record.conf["ipam"]),
        };
        delegate::del_for(plugin, self.folders(), record)?;
        self.attachments.remove(record)
    }

    /// Whether an ADD could be taken now.
    fn status(&self) -> Result<(), Error> {
        let ready = self.parsed.resolve().map(|_| ());
        ready.map_err(|error| Error::Environment(error.into_status_object()))
    }
}

/// The interface a lease asks for.
fn interface(config: &Config, record: &Record, lease: &AddResult) -> Result<PodInterface, Error> {
    let given = lease.ips.iter().find_map(|ip| match ip.address {
        IpNet::V4(address) => Some(address),
        IpNet::V6(_) => None,
    });
    let address = given.ok_or_else(|| {
        Error::Invalid("the IPAM plugin gave no IPv4 address; others are not supported".to_owned())
    })?;
    if !config.subnet.contains(&address.addr()) {
        return Err(Error::Invalid(format!(
            "address {address} is not of this bubble's subnet {}",
            config.subnet
        )));
    }
    Ok(PodInterface {
        veth: VethPair {
            host_name: record.host_name.clone(),
            pod_name: record.ifname.clone(),
            pod_mac: crate::netlink::Mac::of_ipv4(address.addr()),
            mtu: config.mtu,
            alias: format!(
                "{} {} {}",
                record.network, record.container_id, record.ifname
            ),
        },
        address,
        gateway: config.gateway,
        bridge: config.bridge.clone(),
    })
}
