//! The pod's side: veth, address, routes.

use std::fs::File;
use std::io;
use std::path::Path;

use super::error::Error;
use super::plan::{ObservedPod, PodInterface, PodStep, plan_pod};
use crate::netlink::{Mac, Netlink};

/// A pod's network namespace, entered.
#[derive(Debug)]
pub struct PodNamespace {
    file: File,
    netlink: Netlink,
}

impl PodNamespace {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail = |source: io::Error| Error::Namespace {
            path: path.to_owned(),
            hint: match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    " (it belongs to another user namespace, which wants datapath \"tap\")"
                }
                io::ErrorKind::InvalidInput => " (it is no network namespace)",
                _ => "",
            },
            source,
        };
        let file = File::open(path).map_err(fail)?;
        let netlink = Netlink::open_in(path).map_err(|error| fail(error.source))?;
        Ok(Self { file, netlink })
    }

    /// The hardware address of the pod's interface.
    pub async fn mac(&self, ifname: &str) -> Result<Option<Mac>, Error> {
        Ok(self.netlink.link(ifname).await?.map(|link| link.mac))
    }
}

/// What a pod's interface lacks.
pub async fn missing(
    netlink: &Netlink,
    pod: &PodNamespace,
    wanted: &PodInterface,
) -> Result<Vec<PodStep>, Error> {
    let pod_end = pod.netlink.link(&wanted.veth.pod_name).await?;
    let (addresses, routes) = match &pod_end {
        Some(link) => (
            pod.netlink.addresses(link.index).await?,
            pod.netlink.routes(link.index).await?,
        ),
        None => (Vec::new(), Vec::new()),
    };
    let observed = ObservedPod {
        host_end: netlink.link(&wanted.veth.host_name).await?,
        bridge: netlink.link(&wanted.bridge).await?.map(|link| link.index),
        pod_end,
        addresses,
        routes,
    };
    plan_pod(wanted, &observed).map_err(|conflict| Error::Invalid(conflict.to_string()))
}

/// Brings a pod's interface to what is wanted.
pub async fn ensure(
    netlink: &Netlink,
    pod: &PodNamespace,
    wanted: &PodInterface,
) -> Result<(), Error> {
    for step in missing(netlink, pod, wanted).await? {
        apply(netlink, pod, wanted, &step).await?;
    }
    Ok(())
}

async fn apply(
    netlink: &Netlink,
    pod: &PodNamespace,
    wanted: &PodInterface,
    step: &PodStep,
) -> Result<(), Error> {
    let host_name = wanted.veth.host_name.as_str();
    let pod_name = wanted.veth.pod_name.as_str();
    match step {
        PodStep::RemoveHostEnd => netlink.remove_link(host_name).await?,
        PodStep::AddVeth(pair) => netlink.add_veth(pair, &pod.file).await?,
        PodStep::JoinBridge => {
            netlink
                .join_bridge(host_name, &wanted.bridge, &wanted.veth.alias)
                .await?;
        }
        PodStep::AddAddress(address) => pod.netlink.add_address(pod_name, *address, false).await?,
        PodStep::SetUp => pod.netlink.set_up(pod_name).await?,
        PodStep::SetRoute(route) => pod.netlink.set_route(pod_name, route).await?,
    }
    Ok(())
}

/// Name of the bubble's end of a pod's veth: the same for the same
/// attachment, so that DEL finds it when the pod's namespace is gone.
pub fn host_name(network: &str, container_id: &str, ifname: &str) -> String {
    // FNV-1a; 48 bits of it, in the 15 bytes an interface name has.
    let text = format!("{network}/{container_id}/{ifname}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("hpk{:012x}", (hash ^ (hash >> 48)) & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_fit_and_differ_by_interface() {
        let name = host_name("hpk", "0123456789abcdef", "eth0");
        assert_eq!(name.len(), 15);
        assert_eq!(name, host_name("hpk", "0123456789abcdef", "eth0"));
        assert_ne!(name, host_name("hpk", "0123456789abcdef", "eth1"));
    }
}
