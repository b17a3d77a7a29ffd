//! Asking the pods' shims for their figures, all at once.

use std::io;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use hpk_shim_client::Shim;
use k8s_openapi::jiff::Timestamp;
use tracing::debug;

use super::{ContainerUsage, Disk, Figures, PodUsage, Usage, processes};
use crate::access::Entry;
use crate::agent::Agent;
use crate::node::observe;
use crate::text;

/// A shim that takes longer is left out.
const LIMIT: Duration = Duration::from_secs(5);

/// What is used now.
///
/// # Errors
/// If the node's own can't be read.
pub async fn collect(agent: &Agent) -> io::Result<Usage> {
    let entries: Vec<Entry> = agent
        .registry
        .all()
        .into_iter()
        .filter(|entry| entry.ready)
        .collect();
    let asked = join_all(entries.iter().map(of_pod)).await;
    let pods: Vec<PodUsage> = asked.into_iter().flatten().collect();
    let (capacity, available) = observe::disk(&agent.config.args.root_dir);
    Ok(Usage {
        node: agent.config.args.node_name.clone(),
        started_at: agent.started_at,
        all: processes::figures(Path::new("/proc"))?,
        unknown: entries.len() - pods.len(),
        pods,
        disk: Disk {
            capacity,
            available,
        },
    })
}

/// None if its shim doesn't answer.
async fn of_pod(entry: &Entry) -> Option<PodUsage> {
    let meta = &entry.pod.metadata;
    let asked = tokio::time::timeout(LIMIT, ask(entry)).await;
    let containers = match asked {
        Ok(Ok(containers)) => containers,
        Ok(Err(error)) => {
            debug!(pod = meta.name, error = text::chain(&error), "no figures");
            return None;
        }
        Err(_) => {
            debug!(pod = meta.name, "its shim gives no figures in time");
            return None;
        }
    };
    let mut all = Figures::default();
    for container in &containers {
        all += container.all;
    }
    let status = entry.pod.status.as_ref();
    Some(PodUsage {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        started_at: status
            .and_then(|s| s.start_time.as_ref())
            .map(|time| time.0),
        all,
        containers,
    })
}

async fn ask(entry: &Entry) -> Result<Vec<ContainerUsage>, hpk_shim_client::Error> {
    let mut found = Vec::new();
    let mut shim = None;
    for (name, run) in entry.running() {
        let shim = match &shim {
            Some(shim) => shim,
            None => shim.insert(Shim::connect(&run.shim_address).await?),
        };
        match shim.stats(&run.id).await {
            Ok(stats) => found.push(ContainerUsage {
                name: name.to_owned(),
                started_at: entry.started_at(name).unwrap_or(Timestamp::UNIX_EPOCH),
                all: stats.into(),
            }),
            // It ended meanwhile.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
