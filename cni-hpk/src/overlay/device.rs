//! Observes and applies: the device, its neighbours and routes.

use std::net::IpAddr;

use tracing::debug;

use super::config::Mode;
use super::error::Error;
use super::plan::{Device, Observed, Step, Wanted, plan};
use crate::netlink::{self, Netlink};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARDING6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// Brings the kernel to what is wanted; returns how many changes that took.
/// Goes on after a failed one, so that one bad peer doesn't cut off the
/// others, and returns the first failure.
pub async fn ensure(netlink: &Netlink, wanted: &Wanted) -> Result<usize, Error> {
    let observed = observe(netlink, &wanted.device).await?;
    let steps = plan(wanted, &observed);
    let mut failure = None;
    for step in &steps {
        debug!(?step);
        if let Err(error) = apply(netlink, &wanted.device, step).await {
            failure = failure.or(Some(error));
        }
    }
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(steps.len()),
    }
}

async fn observe(netlink: &Netlink, device: &Device) -> Result<Observed, Error> {
    let mut observed = Observed {
        link: netlink.link(&device.name).await?,
        forwarding: is_set(FORWARDING)?,
        // Asked only where it is wanted: a kernel may be without IPv6.
        forwarding6: device.node_ips.iter().any(IpAddr::is_ipv6) && is_set(FORWARDING6)?,
        ..Observed::default()
    };
    if let Some(link) = &observed.link {
        observed.addresses = netlink.addresses(link.index).await?;
        observed.neighbours = netlink.neighbours(link.index, device.vxlan.port).await?;
        observed.routes = netlink.routes(link.index).await?;
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

async fn apply(netlink: &Netlink, device: &Device, step: &Step) -> Result<(), netlink::Error> {
    let name = device.name.as_str();
    match step {
        Step::RemoveDevice => netlink.remove_link(name).await,
        Step::AddDevice => match device.mode {
            Mode::Kernel => {
                netlink
                    .add_vxlan(name, &device.vxlan, device.mac, device.mtu)
                    .await
            }
            // Made when it is opened; its end ends the daemon.
            Mode::Host => Ok(()),
        },
        Step::SetMtu(mtu) => netlink.set_mtu(name, *mtu).await,
        Step::SetMac(mac) => netlink.set_mac(name, *mac).await,
        Step::SetUp => netlink.set_up(name).await,
        Step::AddAddress(address) => netlink.add_address(name, *address, true).await,
        Step::RemoveAddress(address) => netlink.remove_address(name, *address).await,
        Step::SetForwarding => set(FORWARDING),
        Step::SetForwarding6 => set(FORWARDING6),
        Step::RemoveRoute(route) => netlink.remove_route(name, route).await,
        Step::RemoveNeighbour(neighbour) => netlink.remove_neighbour(name, neighbour).await,
        Step::SetNeighbour(neighbour) => netlink.set_neighbour(name, neighbour).await,
        Step::SetRoute(route) => netlink.set_route(name, route).await,
    }
}
