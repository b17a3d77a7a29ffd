//! ADD.

use std::net::IpAddr;

use hpk_cni_types::{AddResult, Interface, IpConfig, Route as ResultRoute, SpecVersion};
use ipnet::IpNet;
use serde_json::{Map, Value};

use super::Run;
use crate::netlink::link::VethPair;
use crate::netlink::{Mac, Netlink, Route};
use crate::plugin::attachments::Record;
use crate::plugin::config::Config;
use crate::plugin::error::Error;
use crate::plugin::plan::{PodInterface, gateway_routes};
use crate::plugin::pod::{self, PodNamespace};
use crate::plugin::request::Request;
use crate::plugin::tap::{self, TapRecord};
use crate::plugin::{delegate, node};
use crate::relay::folder_of;
use crate::relay::wire::Form;

impl Run<'_> {
    pub(super) async fn add(&self) -> Result<AddResult, Error> {
        let config = self.parsed.resolve()?;
        let request = Request::read(&self.parsed.conf, &self.invocation.args)?;
        let previous = self.parsed.conf.prev_result()?;
        // Before anything is made: a namespace that can't be entered.
        let pod = self.pod()?;
        let netlink = Netlink::open()?;
        let _lock = self.lock()?;
        self.clear(&netlink, pod.as_ref()).await?;
        let own = match &self.parsed.conf.plugin.delegate {
            Some(block) => self.add_delegated(block, &config)?,
            None => {
                self.add_own(&netlink, pod.as_ref(), &config, &request)
                    .await?
            }
        };
        Ok(match previous {
            Some(previous) => chained(previous, own),
            None => own,
        })
    }

    /// Removes what an ADD that was killed has left of this attachment. One
    /// that is whole must be DELeted first (CNI spec 2, "ADD").
    async fn clear(&self, netlink: &Netlink, pod: Option<&PodNamespace>) -> Result<(), Error> {
        let Some(record) = self.recorded()? else {
            return Ok(());
        };
        let in_pod = match pod {
            Some(pod) => pod.link(&record.ifname).await?,
            None => None,
        };
        let in_bubble = netlink.link(&record.host_name).await?;
        if in_pod.is_some() || in_bubble.is_some() {
            return Err(self.attached());
        }
        self.release(&record).await
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

    async fn add_own(
        &self,
        netlink: &Netlink,
        pod: Option<&PodNamespace>,
        config: &Config,
        request: &Request,
    ) -> Result<AddResult, Error> {
        let restarted = async || self.sweep(netlink).await;
        node::ensure(netlink, config, &self.parsed.data_dir, restarted).await?;
        let record = self.record(self.parsed.ipam_conf(config), false);
        self.attachments.store(&record)?;
        match self.attach(netlink, pod, config, request, &record).await {
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
                    _ => self.release(&record).await,
                };
                Err(error)
            }
        }
    }

    async fn attach(
        &self,
        netlink: &Netlink,
        pod: Option<&PodNamespace>,
        config: &Config,
        request: &Request,
        record: &Record,
    ) -> Result<AddResult, Error> {
        let ipam = self.ipam(&record.conf);
        let lease = ipam.add(&config.ranges, &request.ips, &record.owner())?;
        let wanted = interface(config, record, &lease, request.mac)?;
        match pod::make(netlink, pod, &wanted).await {
            Err(Error::Netlink(error)) if error.errno() == Some(libc::EEXIST) => {
                return Err(self.attached());
            }
            other => other?,
        }
        if pod.is_some() && record.tap.is_some() {
            self.join_taps(record, &wanted)?;
        }
        self.result(pod, netlink, config, record, &wanted, lease, request)
            .await
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

    #[allow(clippy::too_many_arguments)] // all that an attachment is
    async fn result(
        &self,
        pod: Option<&PodNamespace>,
        netlink: &Netlink,
        config: &Config,
        record: &Record,
        wanted: &PodInterface,
        lease: AddResult,
        request: &Request,
    ) -> Result<AddResult, Error> {
        let device = |name: &str, mac: Option<Mac>, sandbox: String| Interface {
            name: name.to_owned(),
            mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: Some(config.mtu),
            sandbox,
            ..Interface::default()
        };
        let mac_of = async |name: &str| -> Result<Option<Mac>, Error> {
            Ok(netlink.link(name).await?.map(|link| link.mac))
        };
        let (pod_mac, sandbox) = match pod {
            Some(pod) => (
                pod.link(&record.ifname).await?.map(|link| link.mac),
                self.netns()?.display().to_string(),
            ),
            None => (None, String::new()),
        };
        let pod_mac = pod_mac.or(record.tap.as_ref().map(|_| wanted.veth.pod_mac));
        let interfaces = vec![
            device(&config.bridge, mac_of(&config.bridge).await?, String::new()),
            device(
                &record.host_name,
                mac_of(&record.host_name).await?,
                String::new(),
            ),
            device(&record.ifname, pod_mac, sandbox),
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
    let gateways = gateways(config, lease)?;
    let mut routes: Vec<Route> = Vec::new();
    for (address, gateway) in addresses.iter().zip(&gateways) {
        routes.extend(gateway_routes(*address, *gateway));
    }
    for asked in &lease.routes {
        let same_family = |it: &&IpAddr| it.is_ipv4() == asked.dst.addr().is_ipv4();
        let own = gateways.iter().find(same_family).copied();
        let gateway = asked.gw.or(own);
        let is_default = asked.dst.prefix_len() == 0;
        routes.retain(|route| route.destination != asked.dst || route.gateway.is_none());
        if is_default && gateway.is_none() {
            continue;
        }
        routes.push(Route {
            destination: asked.dst,
            gateway,
            onlink: gateway != own,
            mtu: asked.mtu,
        });
    }
    routes.dedup();
    Ok(PodInterface {
        join: record.tap.as_ref().map(TapRecord::join).unwrap_or_default(),
        veth: VethPair {
            host_name: record.host_name.clone(),
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
