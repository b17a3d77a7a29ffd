//! Observes and applies: the device, its neighbours and routes.

use std::net::IpAddr;

use tracing::debug;

use super::config::Mode;
use super::error::Error;
use super::plan::{Device, Observed, Step, Wanted, plan};
use crate::netlink::{self, Netlink, address, link, neighbour, route};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARDING6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// Brings the kernel to what is wanted; returns how many changes that took.
/// Goes on after a failed one, so that one bad peer doesn't cut off the
/// others, and returns the first failure.
pub fn ensure(netlink: &Netlink, wanted: &Wanted) -> Result<usize, Error> {
    let observed = observe(netlink, &wanted.device)?;
    let steps = plan(wanted, &observed);
    let mut failure = None;
    for step in &steps {
        debug!(?step);
        if let Err(error) = apply(netlink, &wanted.device, step) {
            failure = failure.or(Some(error));
        }
    }
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(steps.len()),
    }
}

fn observe(netlink: &Netlink, device: &Device) -> Result<Observed, Error> {
    let mut observed = Observed {
        link: netlink.link(&device.name)?,
        forwarding: is_set(FORWARDING)?,
        // Asked only where it is wanted: a kernel may be without IPv6.
        forwarding6: device.node_ips.iter().any(IpAddr::is_ipv6) && is_set(FORWARDING6)?,
        ..Observed::default()
    };
    if let Some(link) = &observed.link {
        observed.addresses = netlink.addresses(link.index)?;
        observed.neighbours = netlink.neighbours(link.index, device.vxlan.port)?;
        observed.routes = netlink.routes(link.index)?;
    }
    Ok(observed)
}

fn is_set(path: &str) -> Result<bool, netlink::Error> {
    let value = std::fs::read_to_string(path)
        .map_err(|source| netlink::Error::new("read", path, source))?;
    Ok(value.trim() == "1")
}

fn set(path: &str) -> Result<(), netlink::Error> {
    std::fs::write(path, "1").map_err(|source| netlink::Error::new("write", path, source))
}

fn apply(netlink: &Netlink, device: &Device, step: &Step) -> Result<(), netlink::Error> {
    let name = device.name.as_str();
    let index = || netlink.index(name);
    let change = match step {
        Step::RemoveDevice => return netlink.remove_link(name),
        Step::SetForwarding => return set(FORWARDING),
        Step::SetForwarding6 => return set(FORWARDING6),
        Step::AddDevice => match device.mode {
            Mode::Kernel => link::add_vxlan(name, &device.vxlan, device.mac, device.mtu),
            // Made when it is opened; its end ends the daemon.
            Mode::Host => return Ok(()),
        },
        Step::SetMtu(mtu) => link::set_mtu(name, *mtu),
        Step::SetMac(mac) => link::set_mac(name, *mac),
        Step::SetUp => link::set_up(name),
        Step::AddAddress(address) => address::add(index()?, *address, true),
        Step::RemoveAddress(address) => address::remove(index()?, *address),
        Step::RemoveRoute(route) => route::remove(index()?, route),
        Step::RemoveNeighbour(neighbour) => neighbour::remove(index()?, neighbour),
        Step::SetNeighbour(neighbour) => neighbour::set(index()?, neighbour),
        Step::SetRoute(route) => route::set(index()?, route),
    };
    netlink.apply([change])
}
