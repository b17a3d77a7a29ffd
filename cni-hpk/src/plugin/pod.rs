//! The pod's side: veth, addresses, routes.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::plan::{ObservedPod, PodInterface, PodStep, plan_pod, plan_pod_end};
use super::tap;
use crate::netlink::{Change, Link, Netlink, address, in_namespace, ipv6, link, route};

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
    pub fn link(&self, ifname: &str) -> Result<Option<Link>, Error> {
        Ok(self.netlink.link(ifname)?)
    }

    fn quiet_ipv6(&self, ifname: &str) -> Result<(), Error> {
        let quieted = in_namespace(&self.path, || ipv6::quiet(ifname));
        Ok(quieted.map_err(|source| Error::Namespace {
            path: self.path.clone(),
            hint: "",
            source,
        })??)
    }
}

/// What a pod's interface lacks.
pub fn missing(
    netlink: &Netlink,
    pod: Option<&PodNamespace>,
    wanted: &PodInterface,
) -> Result<Vec<PodStep>, Error> {
    let mut observed = ObservedPod {
        host_end: netlink.link(&wanted.veth.host_name)?,
        bridge: netlink.link(&wanted.bridge)?.map(|link| link.index),
        ..ObservedPod::default()
    };
    if let Some(pod) = pod
        && let Some(link) = pod.link(&wanted.veth.pod_name)?
    {
        observed.addresses = pod.netlink.addresses(link.index)?;
        observed.routes = pod.netlink.routes(link.index)?;
        observed.pod_end = Some(link);
    }
    plan_pod(wanted, &observed).map_err(|conflict| Error::Invalid(conflict.to_string()))
}

/// What the pod's end lacks, looked at from where the bridge's isn't seen.
pub fn missing_in(pod: &PodNamespace, wanted: &PodInterface) -> Result<Vec<String>, Error> {
    let Some(link) = pod.link(&wanted.veth.pod_name)? else {
        return Ok(vec![PodStep::AddPodTap.to_string()]);
    };
    let observed = ObservedPod {
        addresses: pod.netlink.addresses(link.index)?,
        routes: pod.netlink.routes(link.index)?,
        pod_end: Some(link),
        ..ObservedPod::default()
    };
    let mut steps = Vec::new();
    plan_pod_end(wanted, &observed, false, &mut steps);
    Ok(steps.iter().map(ToString::to_string).collect())
}

/// Makes a pod's interface, of which nothing may be there yet, with a port of
/// the bridge of index `bridge`.
pub fn make(
    netlink: &Netlink,
    pod: Option<&PodNamespace>,
    wanted: &PodInterface,
    bridge: u32,
) -> Result<(), Error> {
    let steps = plan_pod(wanted, &ObservedPod::default());
    let steps = steps.map_err(|conflict| Error::Invalid(conflict.to_string()))?;
    let mut making = Making {
        netlink,
        wanted,
        bridge,
        outside: Vec::new(),
        inside: Vec::new(),
        index: None,
    };
    for step in steps {
        making.take(pod, step)?;
    }
    making.ask(pod)
}

/// The steps' changes are asked for together where they can be: of each side
/// with one system call.
struct Making<'a> {
    netlink: &'a Netlink,
    wanted: &'a PodInterface,
    bridge: u32,
    /// Changes of the bubble's side, then of the pod's.
    outside: Vec<Change>,
    inside: Vec<Change>,
    /// Of the pod's end.
    index: Option<u32>,
}

impl Making<'_> {
    fn take(&mut self, pod: Option<&PodNamespace>, step: PodStep) -> Result<(), Error> {
        let pair = &self.wanted.veth;
        let (host, name) = (pair.host_name.as_str(), pair.pod_name.as_str());
        match (step, pod) {
            (PodStep::AddBridgeTap, _) => {
                tap::make(host)?;
                self.outside.push(link::set_mac(host, pair.host_mac));
                self.outside.push(link::set_mtu(host, pair.mtu));
            }
            (PodStep::JoinBridge, _) => {
                let joined = link::join_bridge(host, self.bridge, &pair.alias);
                self.outside.extend(joined);
            }
            // The rest is planned only of a pod in sight.
            (_, None) => {}
            (PodStep::AddVeth(pair), Some(pod)) => {
                self.outside.push(link::add_veth(&pair, &pod.file));
            }
            (PodStep::AddPodTap, Some(pod)) => {
                tap::make_in(&pod.path, name)?;
                self.inside.push(link::set_mac(name, pair.pod_mac));
                self.inside.push(link::set_mtu(name, pair.mtu));
            }
            (PodStep::QuietIpv6, Some(pod)) => {
                self.ask(Some(pod))?;
                pod.quiet_ipv6(name)?;
            }
            (PodStep::AddAddress(address), Some(pod)) => {
                let index = self.index(pod)?;
                self.inside.push(address::add(index, address, false));
            }
            (PodStep::SetUp, Some(_)) => self.inside.push(link::set_up(name)),
            (PodStep::SetRoute(route), Some(pod)) => {
                let index = self.index(pod)?;
                self.inside.push(route::set(index, &route));
            }
        }
        Ok(())
    }

    /// Asks for what has come together.
    fn ask(&mut self, pod: Option<&PodNamespace>) -> Result<(), Error> {
        self.netlink.apply(self.outside.drain(..))?;
        if let Some(pod) = pod {
            pod.netlink.apply(self.inside.drain(..))?;
        }
        Ok(())
    }

    fn index(&mut self, pod: &PodNamespace) -> Result<u32, Error> {
        if let Some(index) = self.index {
            return Ok(index);
        }
        self.ask(Some(pod))?;
        let index = pod.netlink.index(&self.wanted.veth.pod_name)?;
        Ok(*self.index.insert(index))
    }
}
