//! What the environment sets, and the values that stand otherwise.

use std::env;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Where a bubble sees the host's folder for it.
pub const BUBBLE_ROOT: &str = "/var/lib/hpk";
/// The uplink's interface in a bubble.
pub const UPLINK: &str = hpk_uplink::INTERFACE;
/// The API server's, etcd's and the overlay's ports in a bubble, the same in each.
pub const API_PORT: u16 = 6443;
pub const ETCD_PORT: u16 = 2379;
pub const OVERLAY_PORT: u16 = 8472;
/// Where flanneld keeps the network in etcd.
pub const FLANNEL_PREFIX: &str = "/coreos.com/network";
/// Where hpk-net-daemons keep their records in etcd.
pub const OVERLAY_PREFIX: &str = "/hpk/overlay/peers/";

/// The cluster's addresses and names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub pods: Ipv4Net,
    pub services: Ipv4Net,
    pub domain: String,
}

impl Network {
    /// HPK_POD_CIDR, HPK_SERVICE_CIDR, HPK_CLUSTER_DOMAIN, or design.md's values.
    pub fn from_env() -> Result<Self> {
        let network = Self {
            pods: cidr("HPK_POD_CIDR", "10.244.0.0/16")?,
            services: cidr("HPK_SERVICE_CIDR", "10.43.0.0/16")?,
            domain: env::var("HPK_CLUSTER_DOMAIN").unwrap_or_else(|_| "cluster.local".into()),
        };
        if network.pods.prefix_len() > 22 {
            bail!(
                "HPK_POD_CIDR={}: at most a /22, a /24 for each node",
                network.pods
            );
        }
        if network.services.prefix_len() > 24 {
            bail!("HPK_SERVICE_CIDR={}: at most a /24", network.services);
        }
        Ok(network)
    }

    /// The subnet of the node with this index, from 1; flanneld leaves the first one unused.
    pub fn subnet(&self, index: usize) -> Option<Ipv4Net> {
        self.pods.subnets(24).ok()?.nth(index)
    }

    /// The tenth Service address, as everywhere.
    pub fn dns(&self) -> Ipv4Addr {
        nth_address(&self.services, 10)
    }

    /// The address of the Service `kubernetes`.
    pub fn kubernetes(&self) -> Ipv4Addr {
        nth_address(&self.services, 1)
    }
}

fn nth_address(net: &Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()).saturating_add(n))
}

fn cidr(name: &str, otherwise: &str) -> Result<Ipv4Net> {
    let text = env::var(name).unwrap_or_else(|_| otherwise.into());
    let net: Ipv4Net = text
        .parse()
        .with_context(|| format!("{name}={text} is no IPv4 network in CIDR form"))?;
    Ok(net.trunc())
}

/// HPK_START_SECONDS: how long a step of a cluster's start may take, such as the API server's.
pub fn step_limit() -> Result<Duration> {
    const NAME: &str = "HPK_START_SECONDS";
    match env::var(NAME) {
        Ok(text) => parse_step_limit(&text).with_context(|| format!("{NAME}={text}")),
        Err(_) => Ok(Duration::from_secs(120)),
    }
}

fn parse_step_limit(text: &str) -> Result<Duration> {
    let seconds: u64 = text.parse().context("no number of seconds")?;
    if !(10..=86_400).contains(&seconds) {
        bail!("from 10 to 86400 seconds can be given to a step");
    }
    Ok(Duration::from_secs(seconds))
}

/// `~/.hpk`, or HPK_HOME.
pub fn hpk_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("HPK_HOME") {
        return Ok(home.into());
    }
    Ok(home()?.join(".hpk"))
}

/// The user's home directory.
pub fn home() -> Result<PathBuf> {
    env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute())
        .context("HOME is not set to an absolute path")
}

/// HPK_LOCAL, TMPDIR or /tmp: a file system of this host.
pub fn local_parent() -> PathBuf {
    ["HPK_LOCAL", "TMPDIR"]
        .iter()
        .filter_map(env::var_os)
        .map(PathBuf::from)
        .find(|dir| dir.is_absolute())
        .unwrap_or_else(|| "/tmp".into())
}

/// PATH, and the places of programs that a user's PATH often lacks.
pub fn search_path() -> String {
    let path = env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

/// The name or path of apptainer: HPK_APPTAINER, or what is on PATH.
pub fn apptainer() -> String {
    env::var("HPK_APPTAINER").unwrap_or_else(|_| "apptainer".into())
}

/// HPK_DEV=1: what a developer has at hand goes before what is installed.
pub fn is_dev() -> bool {
    env::var("HPK_DEV").as_deref() == Ok("1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network {
            pods: "10.244.0.0/16".parse().unwrap(),
            services: "10.43.0.0/16".parse().unwrap(),
            domain: "cluster.local".into(),
        }
    }

    #[test]
    fn a_step_of_the_start_has_the_time_that_is_given() {
        assert_eq!(parse_step_limit("900").unwrap().as_secs(), 900);
        for bad in ["", "9", "2m", "-1", "100000"] {
            assert!(parse_step_limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_node_gets_the_second_subnet_since_flannel_leaves_the_first_unused() {
        assert_eq!(network().subnet(1).unwrap().to_string(), "10.244.1.0/24");
        assert_eq!(
            network().subnet(255).unwrap().to_string(),
            "10.244.255.0/24"
        );
        assert_eq!(network().subnet(256), None);
    }

    #[test]
    fn the_services_addresses_are_the_usual_ones() {
        assert_eq!(network().dns().to_string(), "10.43.0.10");
        assert_eq!(network().kubernetes().to_string(), "10.43.0.1");
    }
}
