//! The pod's side: veth, addresses, routes.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::plan::{ObservedPod, PodInterface, PodStep, plan_pod, plan_pod_end};
use super::tap;
use crate::netlink::{Link, Netlink, in_namespace};

/// A pod's network namespace, entered.
#[derive(Debug)]
pub struct PodNamespace {
    path: PathBuf,
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
        let own = std::fs::metadata("/proc/thread-self/ns/net").map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if (meta.dev(), meta.ino()) == (own.dev(), own.ino()) {
            return Err(Error::OwnNamespace(path.to_owned()));
        }
        let netlink = Netlink::open_in(path).map_err(|error| fail(error.source))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            netlink,
        })
    }

    /// The pod's interface, if it is there.
    pub async fn link(&self, ifname: &str) -> Result<Option<Link>, Error> {
        Ok(self.netlink.link(ifname).await?)
    }

    /// Sets what [`PodStep::QuietIpv6`] means.
    fn quiet_ipv6(&self, ifname: &str) -> Result<(), Error> {
        let folder = Path::new("/proc/sys/net/ipv6/conf").join(ifname);
        // In the order of their weight; /proc/sys/net is the thread's own.
        let set_all = || {
            for (name, value) in [
                ("disable_ipv6", "0"),
                ("accept_redirects", "0"),
                ("accept_ra", "0"),
                ("accept_dad", "0"),
            ] {
                let path = folder.join(name);
                std::fs::write(&path, value).map_err(|source| Error::Sysctl {
                    path,
                    value: value.to_owned(),
                    source,
                })?;
            }
            Ok(())
        };
        in_namespace(&self.path, set_all).map_err(|source| Error::Namespace {
            path: self.path.clone(),
            hint: "",
            source,
        })?
    }
}

/// What a pod's interface lacks.
pub async fn missing(
    netlink: &Netlink,
    pod: Option<&PodNamespace>,
    wanted: &PodInterface,
) -> Result<Vec<PodStep>, Error> {
    let mut observed = ObservedPod {
        host_end: netlink.link(&wanted.veth.host_name).await?,
        bridge: netlink.link(&wanted.bridge).await?.map(|link| link.index),
        ..ObservedPod::default()
    };
    if let Some(pod) = pod
        && let Some(link) = pod.link(&wanted.veth.pod_name).await?
    {
        observed.addresses = pod.netlink.addresses(link.index).await?;
        observed.routes = pod.netlink.routes(link.index).await?;
        observed.pod_end = Some(link);
    }
    plan_pod(wanted, &observed).map_err(|conflict| Error::Invalid(conflict.to_string()))
}

/// What the pod's end lacks, looked at from where the bridge's isn't seen.
pub async fn missing_in(pod: &PodNamespace, wanted: &PodInterface) -> Result<Vec<String>, Error> {
    let Some(link) = pod.link(&wanted.veth.pod_name).await? else {
        return Ok(vec![PodStep::AddPodTap.to_string()]);
    };
    let observed = ObservedPod {
        addresses: pod.netlink.addresses(link.index).await?,
        routes: pod.netlink.routes(link.index).await?,
        pod_end: Some(link),
        ..ObservedPod::default()
    };
    let mut steps = Vec::new();
    plan_pod_end(wanted, &observed, false, &mut steps);
    Ok(steps.iter().map(ToString::to_string).collect())
}

/// Makes a pod's interface, of which nothing may be there yet.
pub async fn make(
    netlink: &Netlink,
    pod: Option<&PodNamespace>,
    wanted: &PodInterface,
) -> Result<(), Error> {
    let steps = plan_pod(wanted, &ObservedPod::default());
    for step in steps.map_err(|conflict| Error::Invalid(conflict.to_string()))? {
        apply(netlink, pod, wanted, &step).await?;
    }
    Ok(())
}

async fn apply(
    netlink: &Netlink,
    pod: Option<&PodNamespace>,
    wanted: &PodInterface,
    step: &PodStep,
) -> Result<(), Error> {
    let host_name = wanted.veth.host_name.as_str();
    match (step, pod) {
        (PodStep::AddBridgeTap, _) => {
            tap::make(host_name)?;
            netlink.set_mtu(host_name, wanted.veth.mtu).await?;
        }
        (PodStep::JoinBridge, _) => {
            netlink
                .join_bridge(host_name, &wanted.bridge, &wanted.veth.alias)
                .await?;
        }
        // The rest is planned only of a pod in sight.
        (_, None) => {}
        (_, Some(pod)) => apply_in_pod(netlink, pod, wanted, step).await?,
    }
    Ok(())
}

async fn apply_in_pod(
    netlink: &Netlink,
    pod: &PodNamespace,
    wanted: &PodInterface,
    step: &PodStep,
) -> Result<(), Error> {
    let pod_name = wanted.veth.pod_name.as_str();
    match step {
        PodStep::AddBridgeTap | PodStep::JoinBridge => {}
        PodStep::AddPodTap => {
            tap::make_in(&pod.path, pod_name)?;
            pod.netlink.set_mac(pod_name, wanted.veth.pod_mac).await?;
            pod.netlink.set_mtu(pod_name, wanted.veth.mtu).await?;
        }
        PodStep::AddVeth(pair) => netlink.add_veth(pair, &pod.file).await?,
        PodStep::QuietIpv6 => pod.quiet_ipv6(pod_name)?,
        PodStep::AddAddress(address) => pod.netlink.add_address(pod_name, *address, false).await?,
        PodStep::SetUp => pod.netlink.set_up(pod_name).await?,
        PodStep::SetRoute(route) => pod.netlink.set_route(pod_name, route).await?,
    }
    Ok(())
}
