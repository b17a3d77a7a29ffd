//! The node's end: pods end in order, hooks and grace periods honoured, before the node does.
//! Source: Kubernetes, "Graceful node shutdown"; pkg/kubelet/nodeshutdown.
//!
//! Protocol: whoever ends the node writes `shutdown` in the run folder, the seconds that pods get in it, and sends SIGUSR1. The
//! kubelet is then not Ready, takes no pod, ends all others and then the critical ones, removes the file, and ends itself. A
//! kubelet that finds the file at its start knows no pods yet, and ends at once: they are left to whoever ends the node.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::access::Entry;
use crate::agent::Agent;
use crate::eviction::is_critical;
use crate::pod::record::{Order, Verdict};
use crate::text;

/// The file with the seconds.
const FILE: &str = "shutdown";

#[derive(Debug, Error)]
enum Error {
    #[error("can't read {path}")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path} holds {text:?} instead of a number of seconds")]
    Seconds { path: String, text: String },
}

/// Seconds for two kinds of pods, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Periods {
    others: u64,
    critical: u64,
}

/// A quarter is kept for critical pods where there are any: others may need them for their own end.
fn periods(seconds: u64, has_critical: bool) -> Periods {
    let critical = if has_critical { seconds / 4 } else { 0 };
    Periods {
        others: seconds - critical,
        critical,
    }
}

/// Returns when the node was told to end, and its pods have.
pub async fn on_order(agent: &Arc<Agent>) {
    let path = agent.config.args.run_dir.join(FILE);
    let mut signals = match signal(SignalKind::user_defined1()) {
        Ok(signals) => signals,
        Err(error) => {
            warn!(%error, "can't listen for SIGUSR1: pods will not be ended in order");
            return std::future::pending().await;
        }
    };
    loop {
        match read(&path) {
            Ok(Some(seconds)) => {
                let entries = agent.registry.all();
                let has_critical = entries.iter().any(|e| is_critical(&e.pod) && e.is_up());
                end_pods(agent, periods(seconds, has_critical)).await;
                if let Err(error) = fs::remove_file(&path) {
                    warn!(%error, "can't tell that the pods have ended");
                }
                return;
            }
            Ok(None) => {}
            Err(error) => warn!(
                error = text::chain(&error),
                "told to end the node, but not how"
            ),
        }
        signals.recv().await;
    }
}

/// None where nobody has said so.
fn read(path: &Path) -> Result<Option<u64>, Error> {
    let name = || path.display().to_string();
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| Error::Read {
            path: name(),
            source,
        })?,
    };
    match text.trim().parse() {
        Ok(seconds) => Ok(Some(seconds)),
        Err(_) => Err(Error::Seconds { path: name(), text }),
    }
}

async fn end_pods(agent: &Arc<Agent>, periods: Periods) {
    info!(?periods, "the node ends: ending its pods");
    agent.standing.send_modify(|s| s.shutting_down = true);
    for (critical, seconds) in [(false, periods.others), (true, periods.critical)] {
        let concerned = |entry: &Entry| is_critical(&entry.pod) == critical;
        for entry in agent.registry.all().into_iter().filter(|e| concerned(e)) {
            entry.end(Order {
                verdict: Verdict {
                    reason: "Terminated".to_owned(),
                    message: "Pod was terminated in response to imminent node shutdown.".to_owned(),
                },
                grace: i64::try_from(seconds).unwrap_or(i64::MAX),
            });
        }
        let mut changes = agent.registry.changes();
        // A second more: containers are killed when their grace is over, and that is seen a moment later.
        let end = Instant::now() + Duration::from_secs(seconds + 1);
        let ended = async {
            while agent
                .registry
                .all()
                .iter()
                .any(|e| concerned(e) && e.is_up())
            {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout_at(end, ended).await.is_err() {
            warn!(critical, "pods are left after their time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn critical_pods_get_the_last_quarter() {
        let all = |seconds| {
            let Periods { others, critical } = periods(seconds, true);
            (others, critical)
        };
        assert_eq!([8, 30, 1].map(all), [(6, 2), (23, 7), (1, 0)]);
        assert_eq!(periods(8, false).others, 8);
    }

    #[test]
    fn a_file_without_a_number_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join(FILE);
        assert!(matches!(read(&path), Ok(None)));
        fs::write(&path, "8\n").expect("written");
        assert!(matches!(read(&path), Ok(Some(8))));
        fs::write(&path, "soon").expect("written");
        assert!(read(&path).is_err_and(|e| e.to_string().contains("soon")));
    }
}
