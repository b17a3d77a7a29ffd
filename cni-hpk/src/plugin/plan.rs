//! Decides what is missing. Pure: what is wanted and what is there, in; steps
//! out. ADD applies them; CHECK wants none; a second ADD finds none.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::config::Config;
use crate::netlink::link::VethPair;
use crate::netlink::nat::Masquerade;
use crate::netlink::{Link, LinkKind, Mac, Route};

/// What there is of the bubble's side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedNode {
    pub bridge: Option<Link>,
    pub bridge_addresses: Vec<IpNet>,
    /// Value of each of [`sysctls`], as read; `None` where there is no such.
    pub sysctls: Vec<Option<String>>,
    /// Comments of the rules in the bridge's NAT chain.
    pub nat: Vec<String>,
}

/// One change of the bubble's side.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeStep {
    AddBridge {
        mac: Mac,
        mtu: u32,
    },
    SetMtu(u32),
    SetMac(Mac),
    SetUp,
    AddAddress(IpNet),
    /// Of a lease the bubble had before.
    RemoveAddress(IpNet),
    SetSysctl(Sysctl),
    ReplaceNat(Vec<Masquerade>),
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
    #[error("the pod has an interface {0:?} already")]
    InterfaceTaken(String),
}

/// The settings routing over the bridge needs. All pod traffic comes in and
/// goes out by the same device, so redirects must be off; the kernel sends
/// them if either `all` or the device says so.
pub fn sysctls(bridge: &str) -> Vec<Sysctl> {
    let sysctl = |path: String, value, required| Sysctl {
        path,
        value,
        required,
    };
    vec![
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
    ]
}

/// The bridge's NAT rules.
pub fn masquerades(config: &Config) -> Vec<Masquerade> {
    let rule = Masquerade {
        subnet: config.subnet.into(),
        networks: vec![config.network.into()],
    };
    config.ip_masq.then_some(rule).into_iter().collect()
}

/// What the bubble's side lacks.
pub fn plan_node(config: &Config, observed: &ObservedNode) -> Result<Vec<NodeStep>, Conflict> {
    let mut steps = Vec::new();
    let mac = Mac::of_ipv4(config.gateway);
    match &observed.bridge {
        None => steps.push(NodeStep::AddBridge {
            mac,
            mtu: config.mtu,
        }),
        Some(link) if link.kind != LinkKind::Bridge => {
            return Err(Conflict::NotABridge(link.name.clone()));
        }
        Some(link) => {
            if link.mtu != config.mtu {
                steps.push(NodeStep::SetMtu(config.mtu));
            }
            if link.mac != mac {
                steps.push(NodeStep::SetMac(mac));
            }
            if !link.up {
                steps.push(NodeStep::SetUp);
            }
        }
    }
    // A bridge has exactly its gateway's address.
    let wanted = IpNet::new_assert(config.gateway.into(), config.subnet.prefix_len());
    for address in &observed.bridge_addresses {
        if *address != wanted {
            steps.push(NodeStep::RemoveAddress(*address));
        }
    }
    if !observed.bridge_addresses.contains(&wanted) {
        steps.push(NodeStep::AddAddress(wanted));
    }
    let mut values = observed.sysctls.iter();
    for sysctl in sysctls(&config.bridge) {
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
    let rules = masquerades(config);
    if observed.nat != rules.iter().map(ToString::to_string).collect::<Vec<_>>() {
        steps.push(NodeStep::ReplaceNat(rules));
    }
    Ok(steps)
}

/// What is wanted of a pod's interface.
#[derive(Clone, Debug, PartialEq)]
pub struct PodInterface {
    pub veth: VethPair,
    /// With the subnet's prefix, as IPAM gives it.
    pub address: Ipv4Net,
    pub gateway: Ipv4Addr,
    pub bridge: String,
}

impl PodInterface {
    /// The gateway is on the device, all else behind it, its own subnet too:
    /// what the pod sends always passes the bubble's routing, and so its
    /// Services, although its neighbours are on the same bridge.
    pub fn routes(&self) -> Vec<Route> {
        let via = |destination: Ipv4Net| Route {
            destination: destination.into(),
            gateway: Some(self.gateway.into()),
            onlink: false,
            mtu: None,
        };
        vec![
            Route {
                destination: Ipv4Net::from(self.gateway).into(),
                gateway: None,
                onlink: false,
                mtu: None,
            },
            via(self.address.trunc()),
            via(Ipv4Net::default()),
        ]
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
    /// The host's end of an ADD whose pod end has gone with its namespace.
    RemoveHostEnd,
    AddVeth(VethPair),
    /// Makes the host's end an isolated port, and sets it up.
    JoinBridge,
    AddAddress(IpNet),
    SetUp,
    SetRoute(Route),
}

impl fmt::Display for PodStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveHostEnd => write!(f, "a stale interface in the bubble"),
            Self::AddVeth(pair) => write!(f, "no interface {}", pair.pod_name),
            Self::JoinBridge => write!(f, "no isolated port of the bridge"),
            Self::AddAddress(address) => write!(f, "no address {address}"),
            Self::SetUp => write!(f, "the interface is down"),
            Self::SetRoute(route) => write!(f, "no route to {}", route.destination),
        }
    }
}

/// What a pod's interface lacks.
pub fn plan_pod(wanted: &PodInterface, observed: &ObservedPod) -> Result<Vec<PodStep>, Conflict> {
    let mut steps = Vec::new();
    let ours = observed.host_end.is_some();
    match (&observed.host_end, &observed.pod_end) {
        (_, Some(pod)) if !ours || pod.kind != LinkKind::Veth => {
            return Err(Conflict::InterfaceTaken(pod.name.clone()));
        }
        (Some(_), None) => {
            steps.push(PodStep::RemoveHostEnd);
            steps.push(PodStep::AddVeth(wanted.veth.clone()));
        }
        (None, _) => steps.push(PodStep::AddVeth(wanted.veth.clone())),
        (Some(_), Some(_)) => {}
    }
    let fresh = !steps.is_empty();
    let joined = observed.host_end.as_ref().is_some_and(|link| {
        link.up && link.isolated && link.bridge.is_some() && link.bridge == observed.bridge
    });
    if fresh || !joined {
        steps.push(PodStep::JoinBridge);
    }
    if fresh || !observed.addresses.contains(&wanted.address.into()) {
        steps.push(PodStep::AddAddress(wanted.address.into()));
    }
    if fresh || !observed.pod_end.as_ref().is_some_and(|link| link.up) {
        steps.push(PodStep::SetUp);
    }
    for route in wanted.routes() {
        if fresh || !observed.routes.contains(&route) {
            steps.push(PodStep::SetRoute(route));
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests;
