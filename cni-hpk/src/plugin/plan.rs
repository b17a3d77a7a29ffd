//! Decides what is missing. Pure: what is wanted and what is there, in; steps
//! out. ADD applies them; CHECK wants none; a second ADD finds none.

use std::fmt;
use std::net::IpAddr;

use hpk_cni_types::Route as ResultRoute;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::config::Config;
use super::pools::Pool;
use crate::netlink::link::VethPair;
use crate::netlink::nat::{self, Backend, Family, Masquerade};
use crate::netlink::{Link, LinkKind, Mac, Route};

/// What there is of the bubble's side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedNode {
    pub bridge: Option<Link>,
    pub bridge_addresses: Vec<IpNet>,
    /// Value of each of [`sysctls`], as read; `None` where there is no such.
    pub sysctls: Vec<Option<String>>,
    pub nat: nat::Observed,
}

/// One change of the bubble's side.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeStep {
    AddBridge(Mac),
    SetMtu(u32),
    SetMac(Mac),
    SetAlias(String),
    SetUp,
    AddAddress(IpNet),
    /// Of a lease the bubble had before.
    RemoveAddress(IpNet),
    SetSysctl(Sysctl),
    ReplaceNat(Backend, Vec<Masquerade>),
}

/// A setting of the bubble's network namespace, under `/proc/sys/net`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sysctl {
    pub path: String,
    pub value: &'static str,
    /// Whether pods can't do without.
    pub required: bool,
}

/// Something is there that we didn't make and won't touch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    #[error("device {0:?} is there already and is no bridge")]
    NotABridge(String),
    #[error(
        "{bridge} is the bridge of {alias:?}: give network {network:?} another by key \"bridge\""
    )]
    AnothersBridge {
        bridge: String,
        alias: String,
        network: String,
    },
    #[error("neither nftables nor iptables can masquerade here")]
    NoNat,
    #[error("the pod has an interface {0:?} already")]
    InterfaceTaken(String),
    #[error("the pod has no interface {0:?}, but the bubble has the other end of it")]
    PodEndGone(String),
}

/// The settings routing over the bridge needs. All pod traffic comes in and
/// goes out by the same device, so redirects must be off; the kernel sends
/// them if either `all` or the device says so.
pub fn sysctls(config: &Config) -> Vec<Sysctl> {
    let bridge = &config.bridge;
    let sysctl = |path: String, value, required| Sysctl {
        path,
        value,
        required,
    };
    let mut settings = Vec::new();
    if config.has(Family::Ipv4) {
        settings.extend([
            sysctl("ipv4/ip_forward".to_owned(), "1", true),
            sysctl("ipv4/conf/all/send_redirects".to_owned(), "0", false),
            sysctl(format!("ipv4/conf/{bridge}/send_redirects"), "0", false),
            // Strict filtering drops a NodePort's answers that come in elsewhere.
            sysctl(format!("ipv4/conf/{bridge}/rp_filter"), "2", false),
            // With it on, br_netfilter bridges a Service's traffic to a pod of the same node
            // instead of letting it be routed, and the isolated port drops it. It is on in each
            // new network namespace where the module is loaded.
            sysctl("bridge/bridge-nf-call-iptables".to_owned(), "0", false),
            // Not route_localnet: a pod could then reach what listens on the bubble's 127.0.0.1
            // alone (CVE-2020-8558).
        ]);
    }
    if config.has(Family::Ipv6) {
        settings.extend([
            sysctl(format!("ipv6/conf/{bridge}/disable_ipv6"), "0", true),
            // The bridge asks for its pods' hardware addresses from its link-local address,
            // which must not wait for the end of duplicate address detection.
            sysctl(format!("ipv6/conf/{bridge}/accept_dad"), "0", false),
            sysctl(format!("ipv6/conf/{bridge}/accept_ra"), "0", false),
            sysctl(IPV6_FORWARDING.to_owned(), "1", true),
            sysctl("bridge/bridge-nf-call-ip6tables".to_owned(), "0", false),
        ]);
    }
    settings
}

/// Has the kernel forget what routers have advertised, where that is taken
/// from hosts alone.
pub const IPV6_FORWARDING: &str = "ipv6/conf/all/forwarding";

/// The bridge's NAT rules: of each subnet but once, whatever its ranges.
pub fn masquerades(config: &Config) -> Vec<Masquerade> {
    if !config.ip_masq {
        return Vec::new();
    }
    let mut subnets: Vec<IpNet> = config.served().map(|pool| pool.subnet).collect();
    subnets.sort_by_key(|net| (Family::of(*net) == Family::Ipv6, *net));
    subnets.dedup();
    let of_family = |subnet: IpNet| {
        let family = |net: &&IpNet| Family::of(**net) == Family::of(subnet);
        config.networks.iter().filter(family).copied().collect()
    };
    subnets
        .into_iter()
        .map(|subnet| Masquerade {
            subnet,
            networks: of_family(subnet),
        })
        .collect()
}

/// Says whose a bridge is.
fn bridge_alias(config: &Config) -> String {
    format!("{OURS}{}", config.name)
}

const OURS: &str = "hpk network ";

/// What the bubble's side lacks.
pub fn plan_node(config: &Config, observed: &ObservedNode) -> Result<Vec<NodeStep>, Conflict> {
    let mut steps = Vec::new();
    plan_bridge(config, observed.bridge.as_ref(), &mut steps)?;
    // A bridge has exactly its gateways' addresses.
    let mut wanted: Vec<IpNet> = config.served().map(Pool::gateway_net).collect();
    wanted.sort();
    wanted.dedup();
    let observed_addresses = observed.bridge_addresses.iter();
    let stale = observed_addresses.filter(|address| !wanted.contains(address));
    steps.extend(stale.map(|address| NodeStep::RemoveAddress(*address)));
    // Some must come before addresses: a disabled IPv6 has none.
    let mut values = observed.sysctls.iter();
    for sysctl in sysctls(config) {
        // `None` is left alone where the bridge is there: no such setting.
        let set = match values.next() {
            Some(Some(value)) => value != sysctl.value,
            Some(None) => observed.bridge.is_none() || sysctl.required,
            None => true,
        };
        if set {
            steps.push(NodeStep::SetSysctl(sysctl));
        }
    }
    let missing = wanted
        .iter()
        .filter(|address| !observed.bridge_addresses.contains(address));
    steps.extend(missing.map(|address| NodeStep::AddAddress(*address)));
    let rules = masquerades(config);
    if observed.nat.comments != rules.iter().map(ToString::to_string).collect::<Vec<_>>() {
        let backend = observed.nat.backend.ok_or(Conflict::NoNat)?;
        steps.push(NodeStep::ReplaceNat(backend, rules));
    }
    Ok(steps)
}

fn plan_bridge(
    config: &Config,
    observed: Option<&Link>,
    steps: &mut Vec<NodeStep>,
) -> Result<(), Conflict> {
    let (mac, alias) = (config.mac, bridge_alias(config));
    let Some(link) = observed else {
        steps.push(NodeStep::AddBridge(mac));
        steps.push(NodeStep::SetMtu(config.mtu));
        steps.push(NodeStep::SetAlias(alias));
        return Ok(());
    };
    if link.kind != LinkKind::Bridge {
        return Err(Conflict::NotABridge(link.name.clone()));
    }
    if link.alias.starts_with(OURS) && link.alias != alias {
        return Err(Conflict::AnothersBridge {
            bridge: link.name.clone(),
            alias: link.alias.clone(),
            network: config.name.clone(),
        });
    }
    if link.alias.is_empty() {
        steps.push(NodeStep::SetAlias(alias));
    }
    if link.mtu != config.mtu {
        steps.push(NodeStep::SetMtu(config.mtu));
    }
    if link.mac != mac {
        steps.push(NodeStep::SetMac(mac));
    }
    if !link.up {
        steps.push(NodeStep::SetUp);
    }
    Ok(())
}

/// What joins a pod to the bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Join {
    #[default]
    Veth,
    /// A TAP at each end.
    Taps,
    /// A TAP on the bridge; the pod's is another process's.
    BridgeTap,
}

/// What is wanted of a pod's interface.
#[derive(Clone, Debug, PartialEq)]
pub struct PodInterface {
    pub join: Join,
    pub veth: VethPair,
    /// With their subnets' prefixes, as IPAM gives them.
    pub addresses: Vec<IpNet>,
    pub routes: Vec<Route>,
    pub bridge: String,
}

/// What leads a pod's packets of one address out: the gateway is on the
/// device, all else behind it, its own subnet too. What the pod sends always
/// passes the bubble's routing, and so its Services, although its neighbours
/// are on the same bridge.
fn gateway_routes(address: IpNet, gateway: IpAddr) -> [Route; 3] {
    let via = |destination: IpNet| Route {
        destination,
        gateway: Some(gateway),
        onlink: false,
        mtu: None,
    };
    [
        Route {
            destination: gateway.into(),
            gateway: None,
            onlink: false,
            mtu: None,
        },
        via(address.trunc()),
        via(default_route(gateway)),
    ]
}

/// The routes of a pod with these addresses, each with its gateway: those of
/// [`gateway_routes`], and those asked for beside or in place of them.
pub fn pod_routes(addresses: &[(IpNet, IpAddr)], asked: &[ResultRoute]) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for (address, gateway) in addresses {
        routes.extend(gateway_routes(*address, *gateway));
    }
    for asked in asked {
        let gateways = addresses.iter().map(|(_, gateway)| *gateway);
        let mut of_family = gateways.filter(|it| it.is_ipv4() == asked.dst.addr().is_ipv4());
        let own = of_family.next();
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
    routes
}

/// Everywhere, in the family of `address`.
pub fn default_route(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => Ipv4Net::default().into(),
        IpAddr::V6(_) => Ipv6Net::default().into(),
    }
}

/// What there is of a pod's interface.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedPod {
    pub host_end: Option<Link>,
    /// Index of the bridge.
    pub bridge: Option<u32>,
    pub pod_end: Option<Link>,
    pub addresses: Vec<IpNet>,
    pub routes: Vec<Route>,
}

/// One change of a pod's interface.
#[derive(Clone, Debug, PartialEq)]
pub enum PodStep {
    AddVeth(VethPair),
    /// The bridge's end of datapath `tap`.
    AddBridgeTap,
    AddPodTap,
    /// No IPv6 but what we give ([`crate::netlink::ipv6`]).
    QuietIpv6,
    /// Makes the host's end an isolated port, and sets it up.
    JoinBridge,
    AddAddress(IpNet),
    SetUp,
    SetRoute(Route),
}

impl fmt::Display for PodStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddVeth(pair) => write!(f, "no interface {}", pair.pod_name),
            Self::AddBridgeTap => write!(f, "no TAP on the bridge"),
            Self::AddPodTap => write!(f, "no TAP in the pod"),
            Self::QuietIpv6 => write!(f, "IPv6 takes redirects"),
            Self::JoinBridge => write!(f, "no isolated port of the bridge"),
            Self::AddAddress(address) => write!(f, "no address {address}"),
            Self::SetUp => write!(f, "the interface is down"),
            Self::SetRoute(route) => write!(f, "no route to {}", route.destination),
        }
    }
}

/// What a pod's interface lacks; all of it if there is none.
pub fn plan_pod(wanted: &PodInterface, observed: &ObservedPod) -> Result<Vec<PodStep>, Conflict> {
    let mut steps = Vec::new();
    let kind = match wanted.join {
        Join::Veth => LinkKind::Veth,
        Join::Taps => LinkKind::Tap,
        Join::BridgeTap => return Ok(plan_bridge_tap(observed)),
    };
    let fresh = match (&observed.host_end, &observed.pod_end) {
        (None, None) => {
            match wanted.join {
                Join::Veth => steps.push(PodStep::AddVeth(wanted.veth.clone())),
                _ => steps.extend([PodStep::AddBridgeTap, PodStep::AddPodTap]),
            }
            true
        }
        (Some(host), Some(pod)) if host.kind == kind && pod.kind == kind => false,
        (_, Some(pod)) => return Err(Conflict::InterfaceTaken(pod.name.clone())),
        (Some(_), None) => return Err(Conflict::PodEndGone(wanted.veth.pod_name.clone())),
    };
    if fresh || !is_joined(observed) {
        steps.push(PodStep::JoinBridge);
    }
    let mut families = wanted.addresses.iter().map(|it| Family::of(*it));
    if fresh && families.any(|family| family == Family::Ipv6) {
        steps.push(PodStep::QuietIpv6);
    }
    plan_pod_end(wanted, observed, fresh, &mut steps);
    Ok(steps)
}

/// What the bridge's end of a TAP lacks; its pod's is out of sight.
fn plan_bridge_tap(observed: &ObservedPod) -> Vec<PodStep> {
    let mut steps = Vec::new();
    if observed.host_end.is_none() {
        steps.push(PodStep::AddBridgeTap);
    }
    if !is_joined(observed) {
        steps.push(PodStep::JoinBridge);
    }
    steps
}

fn is_joined(observed: &ObservedPod) -> bool {
    observed.host_end.as_ref().is_some_and(|link| {
        link.up && link.isolated && link.bridge.is_some() && link.bridge == observed.bridge
    })
}

/// What the pod's end lacks, but for the device itself.
pub fn plan_pod_end(
    wanted: &PodInterface,
    observed: &ObservedPod,
    fresh: bool,
    steps: &mut Vec<PodStep>,
) {
    for address in &wanted.addresses {
        if fresh || !observed.addresses.contains(address) {
            steps.push(PodStep::AddAddress(*address));
        }
    }
    // Not its MTU: a later plugin of the chain may have changed it.
    if fresh || observed.pod_end.as_ref().is_some_and(|link| !link.up) {
        steps.push(PodStep::SetUp);
    }
    for route in &wanted.routes {
        if fresh || !observed.routes.contains(route) {
            steps.push(PodStep::SetRoute(route.clone()));
        }
    }
}

#[cfg(test)]
mod tests;
