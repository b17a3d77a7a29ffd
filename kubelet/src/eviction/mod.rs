//! Pods that the node can't keep: under pressure of memory, disk or process ids the one that matters least ends, and one that
//! writes more than it may ends by itself. Source: Kubernetes, "Node-pressure Eviction"; pkg/kubelet/eviction.
//!
//! - `threshold`: when there is pressure (pure); `observe`: looking at the machine
//! - `rank`: who goes first, and what is said of it (pure)
//! - `storage`: what pods have written, against their limits; `size`: the walk through their files
//! - `admit`: whom a node under pressure takes (pure)
//! - here: a look each ten seconds, and one pod at a time

pub mod admit;
mod observe;
mod rank;
mod size;
mod storage;
pub mod threshold;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::access::Entry;
use crate::agent::Agent;
use crate::events::Kind;
use crate::node::standing::Standing;
use crate::pod::record::{Order, Verdict};
use crate::text;
pub use rank::is_critical;
use rank::{Candidate, Use};
use threshold::{Resource, Threshold};

/// Between two looks, as with the stock kubelet.
const LOOK: Duration = Duration::from_secs(10);
/// Seconds that the containers of an evicted pod get.
const GRACE: i64 = 1;
/// The reason in an evicted pod's status.
pub const EVICTED: &str = "Evicted";

/// Runs for ever.
pub async fn run(agent: Arc<Agent>, node: Node) {
    let (sender, over) = mpsc::unbounded_channel();
    tokio::join!(
        storage::watch(&agent, sender),
        watch_pressure(&agent, &node, over)
    );
}

/// `over`: pods that have written more than they may, which end at once.
async fn watch_pressure(
    agent: &Arc<Agent>,
    node: &Node,
    mut over: mpsc::UnboundedReceiver<(Entry, String)>,
) {
    let mut met: BTreeMap<Resource, Timestamp> = BTreeMap::new();
    // What was just told to end frees something first.
    let mut has_evicted = false;
    let mut ticker = tokio::time::interval(LOOK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some((entry, message)) = over.recv() => {
                evict(agent, &entry, message);
                has_evicted = true;
            }
            _ = ticker.tick() => {
                if let Err(error) = look(agent, node, &mut met, has_evicted).await {
                    warn!(error = text::chain(&error), "can't look for pressure");
                }
                has_evicted = false;
            }
        }
    }
}

/// The pods that aren't over.
fn lives(agent: &Agent) -> Vec<Entry> {
    let mut entries = agent.registry.all();
    entries.retain(|entry| !entry.state.is_over());
    entries
}

async fn look(
    agent: &Arc<Agent>,
    node: &Node,
    met: &mut BTreeMap<Resource, Timestamp>,
    has_evicted: bool,
) -> io::Result<()> {
    let levels = observe::levels(agent)?;
    let config = &agent.config;
    let now = Timestamp::now();
    let crossed: Vec<&Threshold> = config
        .eviction_hard
        .iter()
        .filter(|threshold| threshold.is_met(&levels))
        .collect();
    for threshold in &crossed {
        met.insert(threshold.signal.resource(), now);
    }
    let standing = standing(met, config.pressure_transition, now);
    agent.standing.send_if_modified(|known| {
        let next = Standing {
            shutting_down: known.shutting_down,
            ..standing
        };
        let changed = *known != next;
        *known = next;
        changed
    });
    let Some(threshold) = crossed.first().filter(|_| !has_evicted) else {
        return Ok(());
    };
    let resource = threshold.signal.resource();
    let reason = "EvictionThresholdMet";
    let message = format!("Attempting to reclaim {}", resource.name());
    agent.recorder.node(node, Kind::Warning, reason, message);
    let entries = lives(agent);
    let candidates = candidates(agent, &entries, resource).await?;
    let Some(first) = rank::first(candidates, resource) else {
        info!(
            resource = resource.name(),
            "under pressure, and no pod may be evicted"
        );
        return Ok(());
    };
    let message = rank::message(&first, threshold, &levels, resource);
    if let Some(entry) = entries.iter().find(|e| e.uid() == first.uid) {
        evict(agent, entry, message);
    }
    Ok(())
}

/// The conditions: a threshold counts as met for `hold` after it last was.
fn standing(met: &BTreeMap<Resource, Timestamp>, hold: SignedDuration, now: Timestamp) -> Standing {
    let holds = |resource| {
        let last = met.get(&resource);
        last.is_some_and(|last| *last == now || now.duration_since(*last) < hold)
    };
    Standing {
        memory_pressure: holds(Resource::Memory),
        disk_pressure: holds(Resource::Disk) || holds(Resource::Inodes),
        pid_pressure: holds(Resource::Pids),
        shutting_down: false,
    }
}

/// What each pod uses of the resource.
async fn candidates(
    agent: &Arc<Agent>,
    entries: &[Entry],
    resource: Resource,
) -> io::Result<Vec<Candidate>> {
    let usage = match resource {
        Resource::Memory => crate::usage::collect::collect(agent).await?.pods,
        Resource::Disk | Resource::Inodes | Resource::Pids => Vec::new(),
    };
    let mut candidates = Vec::new();
    for entry in entries {
        let uses: Vec<Use> = match resource {
            Resource::Memory => {
                let pod = usage.iter().find(|pod| pod.uid == entry.uid());
                let containers = pod.into_iter().flat_map(|pod| &pod.containers);
                containers
                    .map(|c| Use::new(&entry.pod, &c.name, "memory", c.all.working_set))
                    .collect()
            }
            Resource::Disk | Resource::Inodes => storage::uses(agent, entry, resource).await,
            Resource::Pids => Vec::new(),
        };
        candidates.push(Candidate::new(&entry.pod, uses));
    }
    Ok(candidates)
}

fn evict(agent: &Agent, entry: &Entry, message: String) {
    if is_critical(&entry.pod) {
        info!(pod = entry.pod.metadata.name, "is critical: not evicted");
        return;
    }
    agent
        .recorder
        .pod(&entry.pod, Kind::Warning, EVICTED, message.clone());
    entry.end(Order {
        verdict: Verdict {
            reason: EVICTED.to_owned(),
            message,
        },
        grace: GRACE,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_outlasts_its_threshold_by_the_transition_period() {
        let second = |at| Timestamp::from_second(at).expect("in range");
        let met = BTreeMap::from([(Resource::Inodes, second(100))]);
        let at = |now| standing(&met, SignedDuration::from_secs(300), second(now));
        assert!(at(100).disk_pressure && at(399).disk_pressure);
        assert!(!at(399).memory_pressure);
        assert_eq!(at(400), Standing::default());
        let none = standing(&met, SignedDuration::ZERO, second(100));
        assert!(none.disk_pressure);
    }
}
