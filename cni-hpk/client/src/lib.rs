//! The runtime's side of CNI: finds conflists, runs plugins by the exec
//! protocol, chains their results, and keeps the result cache where libcni
//! keeps it, so that DEL and CHECK work after a restart and `cnitool` sees
//! the same attachments.
//!
//! Knows no plugin by name. `hpk-kubelet` and `hpktainer` use it; the plugin
//! doesn't.
//!
//! Expected flow: [`netns::create`], [`Client::add`], …, [`Client::check`],
//! [`Client::del`], [`netns::remove`]. After a restart [`Client::gc`] with the
//! attachments that are still wanted, and [`Client::del`] as usual: the cache
//! knows `prevResult`, arguments and capability arguments.
//!
//! Guarantees: ADD of a chain that fails half-way has been undone with DEL.
//! DEL may be repeated. A plugin that hangs is killed after two minutes: what
//! it was to do has failed. Dropping a future kills the plugin it waits for;
//! call DEL afterwards.
//!
//! Layout:
//! - [`client`]: the operations on a network
//! - [`network`]: conflists on disk
//! - [`exec`]: one run of one plugin
//! - [`cache`]: results on disk
//! - [`netns`]: pinned network namespaces
//! - [`error`]

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cache;
pub mod client;
pub mod error;
pub mod exec;
pub mod netns;
pub mod network;

pub use client::{Attachment, Client};
pub use error::Error;
pub use hpk_cni_types as types;
pub use network::NetworkList;
pub use types::AddResult;
