//! What ends the daemon.

use std::io;
use std::path::PathBuf;

use crate::{netlink, subnet};

pub use crate::plugin::error::chain as causes;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("UDP port {port} of the host")]
    Socket {
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("enter the namespaces of process {pid}")]
    Enter {
        pid: i32,
        #[source]
        source: io::Error,
    },
    #[error("TAP device {device}")]
    Tap {
        device: String,
        #[source]
        source: io::Error,
    },
    #[error("listen for readers of the counters at {path}")]
    Metrics {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("start moving frames")]
    Thread(#[source] io::Error),
    #[error("the bubble has ended")]
    BubbleEnded,
    #[error("read Flannel's lease")]
    Lease(#[source] subnet::Error),
    #[error("Flannel leased no IPv4 subnet, which the overlay's node address is of")]
    NoIpv4Lease,
    #[error("Flannel's lease changed from {before} to {now}")]
    LeaseChanged { before: String, now: String },
    #[error("link MTU {0} is too small for an overlay")]
    Mtu(u32),
    #[error("write state file {path}")]
    StateFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error("read {path}")]
    Credentials {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("etcd: {operation}")]
    Etcd {
        operation: &'static str,
        #[source]
        source: Box<etcd_client::Error>,
    },
    #[error("etcd: {0} took too long")]
    EtcdTimeout(&'static str),
    #[error("etcd: the lease of our record has expired")]
    EtcdLease,
    #[error("etcd: the watch of the peers ended")]
    EtcdWatch,
}

/// The error with its causes, for one line of a log.
pub fn chain(error: &dyn std::error::Error) -> String {
    match causes(error) {
        causes if causes.is_empty() => error.to_string(),
        causes => format!("{error}: {causes}"),
    }
}
