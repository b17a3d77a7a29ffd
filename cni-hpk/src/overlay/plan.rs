//! Decides what device, neighbours and routes are missing or too many. Pure.
//!
//! Routes are Flannel's VXLAN backend's: the peer's subnet through its node
//! address, taken to be on the device; whose hardware address, and which host
//! and port that is at, are permanent entries. Nothing is learnt.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::config::Mode;
use super::peer::{Peers, Record};
use crate::netlink::{Link, LinkKind, Mac, Neighbour, Route, Vxlan};

/// The overlay's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub mode: Mode,
    /// In mode `host` there is a TAP instead.
    pub vxlan: Vxlan,
    pub mac: Mac,
    pub mtu: u32,
    /// One of each family.
    pub node_ips: Vec<IpAddr>,
}

/// What there should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub device: Device,
    /// `None`: not known yet; what there is stays.
    pub peers: Option<Peers>,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub link: Option<Link>,
    pub addresses: Vec<IpNet>,
    pub neighbours: Vec<Neighbour>,
    pub routes: Vec<Route>,
    pub forwarding: bool,
    pub forwarding6: bool,
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    RemoveDevice,
    AddDevice,
    SetMtu(u32),
    SetMac(Mac),
    SetUp,
    AddAddress(IpNet),
    RemoveAddress(IpNet),
    SetForwarding,
    SetForwarding6,
    RemoveRoute(Route),
    RemoveNeighbour(Neighbour),
    SetNeighbour(Neighbour),
    SetRoute(Route),
}

impl Device {
    fn kind(&self) -> LinkKind {
        match self.mode {
            Mode::Kernel => LinkKind::Vxlan(self.vxlan.clone()),
            Mode::Host => LinkKind::Tap,
        }
    }
}

/// In mode `host` forwarding is not the kernel's business.
fn neighbours(mode: Mode, record: &Record) -> Vec<Neighbour> {
    let node_ips = record.node_ips().into_iter();
    let mut neighbours: Vec<_> = node_ips
        .map(|address| Neighbour::Ip {
            address,
            mac: record.mac,
        })
        .collect();
    let fdb = Neighbour::Fdb {
        mac: record.mac,
        host: record.host_ip.into(),
        port: record.udp_port,
    };
    if mode == Mode::Kernel {
        neighbours.push(fdb);
    }
    neighbours
}

/// A peer on a link with smaller frames gets no longer ones.
fn routes(subnet: Ipv4Net, record: &Record, own_mtu: u32) -> impl Iterator<Item = Route> {
    let subnets = std::iter::once(IpNet::from(subnet)).chain(record.subnet6.map(IpNet::from));
    let mtu = (record.mtu < own_mtu).then_some(record.mtu);
    subnets
        .zip(record.node_ips())
        .map(move |(destination, gateway)| Route {
            destination,
            gateway: Some(gateway),
            onlink: true,
            mtu,
        })
}

/// The changes, in an order in which a route never leads nowhere: routes go
/// before what they need, and come after it.
pub fn plan(wanted: &Wanted, observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    let fresh = plan_device(&wanted.device, observed, &mut steps);
    if !observed.forwarding {
        steps.push(Step::SetForwarding);
    }
    let ipv6 = wanted.device.node_ips.iter().any(IpAddr::is_ipv6);
    if ipv6 && !observed.forwarding6 {
        steps.push(Step::SetForwarding6);
    }
    let Some(peers) = &wanted.peers else {
        return steps;
    };
    let wanted_neighbours: Vec<Neighbour> = peers
        .values()
        .flat_map(|record| neighbours(wanted.device.mode, record))
        .collect();
    let wanted_routes: Vec<Route> = peers
        .iter()
        .flat_map(|(subnet, record)| routes(*subnet, record, wanted.device.mtu))
        .collect();
    // A new device has lost them all.
    let (neighbours, routes): (&[_], &[_]) = match fresh {
        true => (&[], &[]),
        false => (&observed.neighbours, &observed.routes),
    };
    let stale = routes.iter().filter(|it| !wanted_routes.contains(it));
    steps.extend(stale.cloned().map(Step::RemoveRoute));
    let stale = neighbours
        .iter()
        .filter(|it| !wanted_neighbours.contains(it));
    steps.extend(stale.cloned().map(Step::RemoveNeighbour));
    let missing = wanted_neighbours
        .iter()
        .filter(|it| !neighbours.contains(it));
    steps.extend(missing.cloned().map(Step::SetNeighbour));
    let missing = wanted_routes.iter().filter(|it| !routes.contains(it));
    steps.extend(missing.cloned().map(Step::SetRoute));
    steps
}

/// Returns whether the device is made anew.
fn plan_device(device: &Device, observed: &Observed, steps: &mut Vec<Step>) -> bool {
    let addresses: Vec<_> = device.node_ips.iter().copied().map(IpNet::from).collect();
    let kept = observed
        .link
        .as_ref()
        .filter(|link| link.kind == device.kind());
    let Some(link) = kept else {
        if observed.link.is_some() {
            steps.push(Step::RemoveDevice);
        }
        steps.push(Step::AddDevice);
        steps.extend(addresses.into_iter().map(Step::AddAddress));
        return true;
    };
    if link.mac != device.mac {
        steps.push(Step::SetMac(device.mac));
    }
    if link.mtu != device.mtu {
        steps.push(Step::SetMtu(device.mtu));
    }
    if !link.up {
        steps.push(Step::SetUp);
    }
    let observed = &observed.addresses;
    let stale = observed.iter().filter(|it| !addresses.contains(it));
    steps.extend(stale.copied().map(Step::RemoveAddress));
    let missing = addresses.iter().filter(|it| !observed.contains(it));
    steps.extend(missing.copied().map(Step::AddAddress));
    false
}

#[cfg(test)]
mod tests {
    use super::super::peer::tests::{own, record};
    use super::*;

    fn peers(subnets: &[&str]) -> Peers {
        subnets
            .iter()
            .map(|text| {
                let subnet: Ipv4Net = text.parse().unwrap();
                (subnet, record(subnet))
            })
            .collect()
    }

    fn wanted(subnets: &[&str]) -> Wanted {
        Wanted {
            device: own().device,
            peers: Some(peers(subnets)),
        }
    }

    fn in_place(subnets: &[&str]) -> Observed {
        let device = own().device;
        let peers = peers(subnets);
        Observed {
            link: Some(Link {
                index: 3,
                name: device.name,
                kind: LinkKind::Vxlan(device.vxlan),
                mac: device.mac,
                mtu: device.mtu,
                up: true,
                bridge: None,
                isolated: false,
                alias: String::new(),
            }),
            addresses: device.node_ips.iter().copied().map(IpNet::from).collect(),
            neighbours: peers
                .values()
                .flat_map(|record| neighbours(Mode::Kernel, record))
                .collect(),
            routes: peers
                .iter()
                .flat_map(|(net, record)| routes(*net, record, device.mtu))
                .collect(),
            forwarding: true,
            forwarding6: false,
        }
    }

    #[test]
    fn a_restart_changes_nothing() {
        let subnets = ["10.244.5.0/24", "10.244.6.0/24"];
        assert_eq!(plan(&wanted(&subnets), &in_place(&subnets)), []);
    }

    #[test]
    fn a_new_peers_route_comes_after_its_neighbours() {
        let steps = plan(&wanted(&["10.244.5.0/24"]), &in_place(&[]));
        assert_eq!(steps.len(), 3);
        assert!(matches!(steps[2], Step::SetRoute(_)));
    }

    #[test]
    fn a_gone_peers_route_goes_before_its_neighbours() {
        let steps = plan(&wanted(&[]), &in_place(&["10.244.5.0/24"]));
        assert_eq!(steps.len(), 3);
        assert!(matches!(steps[0], Step::RemoveRoute(_)));
    }

    #[test]
    fn peers_stay_until_the_list_is_known() {
        let wanted = Wanted {
            peers: None,
            ..wanted(&[])
        };
        assert_eq!(plan(&wanted, &in_place(&["10.244.5.0/24"])), []);
    }

    #[test]
    fn a_peer_that_moved_to_another_port_has_only_its_forwarding_changed() {
        let mut wanted = wanted(&["10.244.5.0/24"]);
        for record in wanted.peers.iter_mut().flat_map(|peers| peers.values_mut()) {
            record.udp_port = 4444;
        }
        let steps = plan(&wanted, &in_place(&["10.244.5.0/24"]));
        assert_eq!(steps.len(), 2);
        assert!(matches!(
            steps[0],
            Step::RemoveNeighbour(Neighbour::Fdb { port: 9999, .. })
        ));
        assert!(matches!(
            steps[1],
            Step::SetNeighbour(Neighbour::Fdb { port: 4444, .. })
        ));
    }

    #[test]
    fn a_peer_with_ipv6_and_a_smaller_link_gets_routes_of_its_mtu_in_both_families() {
        let mut wanted = wanted(&["10.244.5.0/24"]);
        wanted.device.node_ips.push("fd00:3::".parse().unwrap());
        for record in wanted.peers.iter_mut().flat_map(|peers| peers.values_mut()) {
            record.mtu = 1400;
            record.subnet6 = "fd00:5::/64".parse().ok();
        }
        let steps = plan(&wanted, &in_place(&[]));
        assert_eq!(steps[0], Step::AddAddress("fd00:3::/128".parse().unwrap()));
        assert_eq!(steps[1], Step::SetForwarding6);
        assert_eq!(steps.len(), 7);
        let routes: Vec<_> = steps[5..].iter().collect();
        assert!(
            routes
                .iter()
                .all(|step| matches!(step, Step::SetRoute(route) if route.mtu == Some(1400)))
        );
        assert!(
            matches!(routes[1], Step::SetRoute(route) if route.gateway == "fd00:5::".parse().ok())
        );
    }

    #[test]
    fn a_device_of_another_vni_is_made_anew_with_all_peers() {
        let mut observed = in_place(&["10.244.5.0/24"]);
        if let Some(link) = &mut observed.link {
            link.kind = LinkKind::Vxlan(Vxlan {
                vni: 1,
                ..own().device.vxlan
            });
        }
        let steps = plan(&wanted(&["10.244.5.0/24"]), &observed);
        assert_eq!(steps[..2], [Step::RemoveDevice, Step::AddDevice]);
        assert_eq!(steps.len(), 6);
    }
}
