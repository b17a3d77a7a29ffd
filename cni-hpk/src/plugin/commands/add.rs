//! ADD.

use std::net::IpAddr;

use hpk_cni_types::{AddResult, Interface, IpConfig, Route as ResultRoute, SpecVersion};
use ipnet::IpNet;
use serde_json::{Map, Value};

use super::Run;
use crate::netlink::link::VethPair;
use crate::netlink::{Mac, Netlink};
use crate::plugin::attachments::{Record, host_mac};
use crate::plugin::config::Config;
use crate::plugin::error::Error;
use crate::plugin::plan::{PodInterface, pod_routes};
use crate::plugin::pod::{self, PodNamespace};
use crate::plugin::request::Request;
use crate::plugin::tap::{self, TapRecord};
use crate::plugin::{delegate, node};
use crate::relay::folder_of;
use crate::relay::wire::Form;

impl Run<'_> {
    pub(super) fn add(&self) -> Result<AddResult, Error> {
        let config = self.config()?;
        let request = Request::read(&self.parsed.conf, &self.invocation.args)?;
        let previous = self.parsed.conf.prev_result()?;
        // Before anything is made: a namespace that can't be entered.
        let pod = self.pod()?;
        let netlink = Netlink::open()?;
        let _lock = self.lock()?;
        self.clear(&netlink, pod.as_ref())?;
        let own = match &self.parsed.conf.plugin.delegate {
            Some(block) => self.add_delegated(block, &config)?,
            None => self.add_own(&netlink, pod.as_ref(), &config, &request)?,
        };
        Ok(match previous {
            Some(previous) => chained(previous, own),
            None => own,
        })
    }

    /// Removes what an ADD that was killed has left of this attachment. One
    /// that is whole must be DELeted first (CNI spec 2, "ADD").
    fn clear(&self, netlink: &Netlink, pod: Option<&PodNamespace>) -> Result<(), Error> {
        let Some(record) = self.recorded()? else {
            return Ok(());
        };
        let in_pod = match pod {
            Some(pod) => pod.link(&record.ifname)?,
            None => None,
        };
        let in_bubble = netlink.link(&record.host_name)?;
        if in_pod.is_some() || in_bubble.is_some() {
            return Err(self.attached());
        }
        self.release(&record)
    }

    fn attached(&self) -> Error {
        Error::Attached {
            container_id: self.invocation.container_id.clone(),
            ifname: self.invocation.ifname.clone(),
        }
    }

    /// Another plugin makes the interface.
    fn add_delegated(
        &self,
        block: &Map<String, Value>,
        config: &Config,
    ) -> Result<AddResult, Error> {
        let record = self.record(self.parsed.delegate_conf(block, config)?, true);
        self.attachments.store(&record)?;
        let plugin = delegate::plugin_of(&record.conf);
        delegate::add(plugin, self.folders(), &record.conf).inspect_err(|error| {
            // The first error is the one to tell. What stays is on record.
            let undone = match error {
                Error::PluginNotFound { .. } => Ok(()),
                _ => delegate::del_for(plugin, self.folders(), &record),
            };
            let _ = undone.and_then(|()| self.forget(&record));
        })
    }

    fn add_own(
        &self,
        netlink: &Netlink,
        pod: Option<&PodNamespace>,
        config: &Config,
        request: &Request,
    ) -> Result<AddResult, Error> {
        let record = self.record(self.parsed.ipam_conf(config), false);
        // First: others must not take the bridge's side of our ranges away.
        self.attachments.store(&record)?;
        let (now, restarted) = (|| self.config(), || self.sweep(netlink));
        let ensured = node::ensure(netlink, config, &self.parsed.data_dir, now, restarted);
        let bridge = ensured.inspect_err(|_| {
            // The first error is the one to tell.
            let _ = self.forget(&record);
        })?;
        let made = self.attach(bridge, netlink, pod, config, request, &record);
        match made {
            Ok(result) => Ok(result),
            Err(error) => {
                // The first error is the one to tell. What stays is on record.
                let _ = match error {
                    // Nothing was begun, and there is no one to ask for a DEL.
                    Error::PluginNotFound { .. } => self.forget(&record),
                    // The interface isn't ours to remove.
                    Error::Attached { .. } => self
                        .ipam(&record.conf)
                        .del(&record)
                        .and_then(|()| self.forget(&record)),
                    _ => self.release(&record),
                };
                Err(error)
            }
        }
    }

    fn attach(
        &self,
        bridge: u32,
        netlink: &Netlink,
        pod: Option<&PodNamespace>,
        config: &Config,
        request: &Request,
        record: &Record,
    ) -> Result<AddResult, Error> {
        let ipam = self.ipam(&record.conf);
        let lease = ipam.add(&config.ranges, &request.ips, &record.owner())?;
        let wanted = interface(config, record, &lease, request.mac)?;
        match pod::make(netlink, pod, &wanted, bridge) {
            Err(Error::Netlink(error)) if error.errno() == Some(libc::EEXIST) => {
                return Err(self.attached());
            }
            other => other?,
        }
        if pod.is_some() && record.tap.is_some() {
            self.join_taps(record, &wanted)?;
        }
        self.result(pod, config, &wanted, lease, request)
    }

    /// Has the relay join the ends; what the pod's side is to do goes on
    /// record first, for it may have to be started anew.
    fn join_taps(&self, record: &Record, wanted: &PodInterface) -> Result<(), Error> {
        let data_dir = self.parsed.data_dir.as_path();
        let mut record = record.clone();
        let attachment = record.attachment();
        if let Some(tap) = &mut record.tap
            && tap.form == Form::Frames
        {
            let lock = tap::lock(data_dir, &attachment);
            let folder = folder_of(data_dir);
            let side = tap::pod_side(folder, lock, attachment, self.netns()?, tap.form, wanted);
            tap.pod = Some(side);
            self.attachments.store(&record)?;
        }
        tap::join(&record, self.netns()?, data_dir, self.folders())
    }

    fn result(
        &self,
        pod: Option<&PodNamespace>,
        config: &Config,
        wanted: &PodInterface,
        lease: AddResult,
        request: &Request,
    ) -> Result<AddResult, Error> {
        let device = |name: &str, mac: Mac, sandbox: String| Interface {
            name: name.to_owned(),
            mac: mac.to_string(),
            mtu: Some(config.mtu),
            sandbox,
            ..Interface::default()
        };
        let sandbox = match pod {
            Some(_) => self.netns()?.display().to_string(),
            None => String::new(),
        };
        let pair = &wanted.veth;
        let interfaces = vec![
            device(&config.bridge, config.mac, String::new()),
            device(&pair.host_name, pair.host_mac, String::new()),
            device(&pair.pod_name, pair.pod_mac, sandbox),
        ];
        let ips = lease.ips.iter().zip(gateways(config, &lease)?);
        let ips = ips.map(|(ip, gateway)| IpConfig {
            address: ip.address,
            gateway: Some(gateway),
            interface: Some(2),
        });
        let mut routes = lease.routes;
        for route in &wanted.routes {
            let told = routes.iter().any(|it| it.dst == route.destination);
            if route.destination.prefix_len() == 0 && !told {
                routes.push(ResultRoute::new(route.destination, route.gateway));
            }
        }
        let conf_dns = &self.parsed.conf.dns;
        let dns = match &request.dns {
            Some(dns) => dns.clone(),
            None if !conf_dns.is_empty() => conf_dns.clone(),
            None => lease.dns,
        };
        Ok(AddResult {
            cni_version: Some(SpecVersion::LATEST),
            interfaces,
            ips: ips.collect(),
            routes,
            dns,
        })
    }
}

/// What ADD answers in a chain: what the plugins before us did goes first.
fn chained(previous: AddResult, own: AddResult) -> AddResult {
    let mut result = previous;
    let before = result.interfaces.len();
    result.interfaces.extend(own.interfaces);
    result.ips.extend(own.ips.into_iter().map(|ip| IpConfig {
        interface: ip.interface.map(|index| index + before),
        ..ip
    }));
    result.routes.extend(own.routes);
    if !own.dns.is_empty() {
        result.dns = own.dns;
    }
    result
}

/// The gateway of each address: as IPAM says, else its pool's.
fn gateways(config: &Config, lease: &AddResult) -> Result<Vec<IpAddr>, Error> {
    let gateway = |ip: &IpConfig| {
        let pool = config
            .pools()
            .find(|pool| pool.subnet.contains(&ip.address.addr()));
        pool.map(|pool| pool.gateway).ok_or_else(|| {
            Error::Invalid(format!(
                "address {} is of none of this bubble's subnets",
                ip.address
            ))
        })
    };
    lease.ips.iter().map(gateway).collect()
}

/// The interface a lease asks for.
pub(super) fn interface(
    config: &Config,
    record: &Record,
    lease: &AddResult,
    mac: Option<Mac>,
) -> Result<PodInterface, Error> {
    let addresses: Vec<IpNet> = lease.ips.iter().map(|ip| ip.address).collect();
    let first = addresses
        .first()
        .ok_or_else(|| Error::Invalid("the IPAM plugin gave no address".to_owned()))?;
    let with_gateways: Vec<(IpNet, IpAddr)> = addresses
        .iter()
        .copied()
        .zip(gateways(config, lease)?)
        .collect();
    let routes = pod_routes(&with_gateways, &lease.routes);
    Ok(PodInterface {
        join: record.tap.as_ref().map(TapRecord::join).unwrap_or_default(),
        veth: VethPair {
            host_name: record.host_name.clone(),
            host_mac: host_mac(&record.host_name),
            pod_name: record.ifname.clone(),
            pod_mac: mac.unwrap_or_else(|| Mac::of(first.addr())),
            mtu: config.mtu,
            alias: format!(
                "{} {} {}",
                record.network, record.container_id, record.ifname
            ),
        },
        addresses,
        routes,
        bridge: config.bridge.clone(),
    })
}
