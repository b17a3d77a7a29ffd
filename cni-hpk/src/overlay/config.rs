//! The command line of `hpk-net-daemon overlay`.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What moves the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// A kernel VXLAN device in the bubble; its UDP forwarded by the uplink.
    Kernel,
    /// This program, with its UDP socket in the host's network namespace.
    Host,
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Host => "host",
        }
    }
}

/// Joins this bubble to the overlay and keeps it there.
#[derive(Clone, Debug, Args)]
pub struct Config {
    #[command(flatten)]
    pub etcd: Etcd,
    /// Name of this node
    #[arg(long)]
    pub node: String,
    /// Address of the host, at which peers reach the UDP port
    #[arg(long)]
    pub host_ip: Ipv4Addr,
    /// Flannel's lease; waited for
    #[arg(long, default_value = "/run/flannel/subnet.env")]
    pub subnet_file: PathBuf,
    /// Written when the device is up
    #[arg(long, default_value = "/run/hpk/overlay.json")]
    pub state_file: PathBuf,
    #[arg(long, value_enum, default_value = "kernel")]
    pub mode: Mode,
    /// VXLAN network identifier; the same in all bubbles of a cluster
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub vni: u32,
    /// UDP port of the host, published to the peers
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub udp_port: u16,
    /// UDP port in the bubble to which the uplink forwards it; the same unless given
    #[arg(long)]
    pub listen_port: Option<u16>,
    /// MTU of the link between the hosts, bytes; the device gets 50 less
    #[arg(long, default_value_t = 1500)]
    pub mtu: u32,
    /// Name of the device
    #[arg(long, default_value = "hpk-vxlan")]
    pub device: String,
    /// Threads each way (mode host); one a core, at most four, unless given
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub queues: Option<u8>,
    /// Buffer of each UDP socket each way, bytes; the kernel gives at most
    /// net.core.rmem_max and wmem_max (mode host)
    #[arg(long, default_value_t = 4 << 20)]
    pub socket_buffer: u32,
    /// Process in the bubble whose namespaces to enter (mode host)
    #[arg(long)]
    pub enter_pid: Option<i32>,
}

/// Where etcd is and who we are to it.
#[derive(Clone, Debug, Args)]
pub struct Etcd {
    /// URLs, separated by commas
    #[arg(long = "etcd-endpoints", value_delimiter = ',', required = true)]
    pub endpoints: Vec<String>,
    #[arg(long = "etcd-cacert")]
    pub ca_cert: Option<PathBuf>,
    #[arg(long = "etcd-cert", requires = "key")]
    pub cert: Option<PathBuf>,
    #[arg(long = "etcd-key", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Folder of the peers' records
    #[arg(long = "etcd-prefix", default_value = "/hpk/overlay/peers/")]
    pub prefix: String,
}
