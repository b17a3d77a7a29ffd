//! Pods on this node.
//!
//! - `state`: a pod's life as a table of legal moves
//! - `phase`: what is to be done next in each state (pure)
//! - `restart`, `admission`, `allocation`: decisions about containers and about the pod (pure)
//! - `record`: what survives the kubelet; `live`: what doesn't
//! - `paths`: where a pod's files are
//! - `sandbox`, `container`, `group`, `kill`: doing it, through CNI and shim; `termination`: what an end leaves to be read
//! - `worker`: one task per pod, which looks, acts, and hears what came of it
//! - `set`: the watch on the API server, and all workers

pub mod admission;
pub mod allocation;
pub mod container;
pub mod group;
pub mod kill;
pub mod live;
pub mod paths;
pub mod phase;
pub mod record;
pub mod restart;
pub mod sandbox;
pub mod set;
pub mod state;
pub mod termination;
pub mod worker;
