//! The network of a bubble: the CNI plugin `cni-hpk` and the overlay daemon
//! `hpk-net-daemon`. Knows nothing of Kubernetes or Apptainer.
//!
//! Layout:
//! - [`plugin`]: ADD, DEL, CHECK, GC, STATUS, VERSION
//! - [`overlay`]: the overlay between bubbles
//! - [`relay`]: the datapath `tap`
//! - [`daemon`]: `hpk-net-daemon`, which runs these two
//! - [`netlink`]: links, addresses, routes, neighbours and NAT of a namespace
//! - [`subnet`]: Flannel's `subnet.env` and the overlay's state file

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod daemon;
pub mod netlink;
pub mod overlay;
pub mod plugin;
pub mod relay;
pub mod subnet;
