//! Pods on this node.
//!
//! - `state`: a pod's life as a table of legal moves
//! - `phase`: what is to be done next in each state (pure)
//! - `restart`, `admission`, `allocation`, `sysctls`: decisions about containers and about the pod (pure)
//! - `ephemeral`: containers that are added to a pod that runs
//! - `record`: what survives the kubelet; `live`: what doesn't
//! - `paths`: where a pod's files are
//! - `runtime_class`: whether the node has the runtime asked for
//! - `sandbox`, `container`, `group`, `kill`: doing it, through CNI and shim; `termination`: what an end leaves to be read;
//!   `turns`: how many pods' at a time
//! - `worker`: one task per pod, which looks, acts, and hears what came of it
//! - `statics`: those among them that come from a folder of this node
//! - `set`: the watch on the API server, and all workers

pub mod admission;
pub mod allocation;
pub mod container;
pub mod ephemeral;
pub mod group;
pub mod kill;
pub mod live;
pub mod paths;
pub mod phase;
pub mod ports;
pub mod record;
pub mod restart;
pub mod runtime_class;
pub mod sandbox;
pub mod set;
pub mod state;
pub mod statics;
pub mod sysctls;
pub mod termination;
pub mod turns;
pub mod worker;
