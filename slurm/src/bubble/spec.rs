//! What the host tells the bubble: `bubble.json` in the folder that both see. No secrets: those
//! are files beside it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::allocation::Grant;
use crate::gpus::Device;
use crate::settings::Network;

pub const FILE: &str = "bubble.json";

/// Where the overlay's UDP socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverlayMode {
    /// In the bubble, a kernel VXLAN device; the uplink forwards this UDP port of the host.
    Kernel { udp_port: u16 },
    /// On the host, whose part then runs the overlay's daemon.
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BubbleSpec {
    pub cluster: String,
    pub node: String,
    /// Whether etcd and the control plane run here.
    pub controller: bool,
    /// All nodes of the cluster, the controller first.
    pub nodes: Vec<String>,
    pub host_ip: Ipv4Addr,
    pub subnet: Ipv4Net,
    pub network: Network,
    /// Its URL as seen from this bubble.
    pub etcd: String,
    pub vni: u32,
    pub overlay: OverlayMode,
    /// MTU of the link between the hosts, in bytes.
    pub link_mtu: u32,
    pub grant: Grant,
    /// GPUs for pods.
    pub devices: Vec<Device>,
    pub labels: Vec<(String, String)>,
    /// Folders as the bubble sees them: the image store, that of claims' volumes, and where the
    /// logs go at the end.
    pub store: PathBuf,
    pub volumes: PathBuf,
    pub registries: PathBuf,
    /// Which images may be taken.
    pub policy: PathBuf,
    /// Where the user's logins at registries may be.
    pub logins: Vec<PathBuf>,
    pub logs: PathBuf,
    /// Proxy settings of the host, for what reaches the internet.
    pub proxies: Vec<(String, String)>,
    /// GiB that one image may unpack to, where the user says.
    pub image_max_gib: Option<u64>,
    /// GiB that the image store may grow to, where the user says.
    pub store_max_gib: Option<u64>,
    /// How long a step of the start may take.
    pub step_seconds: u64,
    /// Containers whose users aren't mapped run as root, where their pods don't say no.
    pub squash_ids: bool,
    /// Further options of the kubelet, as the user gives them.
    #[serde(default)]
    pub kubelet_options: Vec<String>,
}

impl BubbleSpec {
    /// The node's address on the overlay.
    pub fn node_ip(&self) -> Ipv4Addr {
        self.subnet.network()
    }
}
