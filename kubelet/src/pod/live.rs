//! What a pod's worker knows besides the record: work in flight, probe results, what it waits for.
//! Lost with the kubelet, and found out again.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::images::Ready as ReadyImage;
use crate::volumes::Mounted;

/// A piece of work that runs beside the worker, at most once at a time.
#[derive(Debug, Clone, Default)]
pub enum Op<T> {
    #[default]
    Idle,
    Busy {
        /// Seconds waited before this try; 0 at the first.
        delay: u32,
    },
    Done(T),
    Failed(Failure),
}

/// Why work failed, and when it is tried again.
#[derive(Debug, Clone)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
    pub since: Timestamp,
    pub retry_at: Timestamp,
    /// Seconds waited; the next wait is longer.
    pub delay: u32,
}

impl<T> Op<T> {
    /// The work begins, for the first time or again.
    pub fn begin(&mut self) {
        *self = Op::Busy {
            delay: self.delay(),
        };
    }

    /// The work failed: tried again after `first` seconds, doubled each time up to `max`.
    pub fn fail(&mut self, first: u32, max: u32, reason: &'static str, message: String) {
        *self = Op::Failed(Failure::after(self.delay(), first, max, reason, message));
    }

    pub fn is_busy(&self) -> bool {
        matches!(self, Op::Busy { .. })
    }

    /// Not yet tried, or failed and due again.
    pub fn is_due(&self, now: Timestamp) -> bool {
        match self {
            Op::Idle => true,
            Op::Failed(failure) => failure.retry_at <= now,
            Op::Busy { .. } | Op::Done(_) => false,
        }
    }

    pub fn done(&self) -> Option<&T> {
        match self {
            Op::Done(value) => Some(value),
            _ => None,
        }
    }

    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Op::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    /// Seconds waited for the try under way, or to be waited for the next.
    pub fn delay(&self) -> u32 {
        match self {
            Op::Busy { delay } => *delay,
            Op::Failed(failure) => failure.delay,
            Op::Idle | Op::Done(_) => 0,
        }
    }
}

impl Failure {
    /// Now; `before`: the delay that the failed try had waited for.
    pub fn after(before: u32, first: u32, max: u32, reason: &'static str, message: String) -> Self {
        let now = Timestamp::now();
        let delay = if before == 0 {
            first
        } else {
            (before * 2).min(max)
        };
        Self {
            reason,
            message,
            since: now,
            retry_at: now + SignedDuration::from_secs(i64::from(delay)),
            delay,
        }
    }
}

/// A container being stopped.
#[derive(Debug)]
pub struct Stopping {
    /// When it is killed; moved nearer by a shorter grace.
    deadline: watch::Sender<Timestamp>,
    task: JoinHandle<()>,
}

impl Stopping {
    pub fn new(deadline: watch::Sender<Timestamp>, task: JoinHandle<()>) -> Self {
        Self { deadline, task }
    }

    /// Only ever nearer: a longer grace than the first is not given.
    pub fn hurry(&self, deadline: Timestamp) {
        self.deadline.send_if_modified(|known| {
            let nearer = deadline < *known;
            if nearer {
                *known = deadline;
            }
            nearer
        });
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One container's passing state.
#[derive(Debug, Default)]
pub struct LiveContainer {
    /// Done: the image to start from, taken by the next start.
    pub image: Op<Arc<ReadyImage>>,
    /// When the spec last named another image than before.
    pub image_changed: Option<Timestamp>,
    /// Being created and started, with its postStart hook.
    pub starting: bool,
    /// Why it can't be created; none when it can.
    pub config_error: Option<Failure>,
    pub stopping: Option<Stopping>,
    /// Past its startup probe.
    pub started: bool,
    pub ready: bool,
    /// Its cgroup is being given other limits.
    pub resizing: Op<()>,
    /// Ends the probes of the current run.
    pub probes: Option<crate::probes::Running>,
}

#[derive(Debug, Default)]
pub struct Live {
    pub volumes: Op<Arc<Mounted>>,
    pub sandbox: Op<()>,
    /// The sandbox is being taken down.
    pub removing: Op<()>,
    /// The task that writes anew what volumes hold from the API.
    pub refreshing: Option<JoinHandle<()>>,
    /// Volumes are being removed.
    pub emptying: Op<()>,
    /// All its files are being removed.
    pub clearing: Op<()>,
    /// The API object is being deleted.
    pub deleting: Op<()>,
    /// The cgroup around its containers' is being given other limits.
    pub resizing: Op<()>,
    /// Cancelled when the pod is to end: nothing more of it waits for a turn.
    pub unwanted: CancellationToken,
    /// When containers began to be stopped: their grace is the pod's, all in all.
    pub ending_since: Option<Timestamp>,
    pub containers: BTreeMap<String, LiveContainer>,
}

impl Live {
    pub fn container(&mut self, name: &str) -> &mut LiveContainer {
        self.containers.entry(name.to_owned()).or_default()
    }

    /// Something runs that would make what a teardown removes.
    pub fn is_making(&self) -> bool {
        self.volumes.is_busy()
            || self.sandbox.is_busy()
            || self.containers.values().any(|container| container.starting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_waits_twice_as_long_and_success_forgets_them() {
        let mut op: Op<()> = Op::default();
        let mut waits = Vec::new();
        for _ in 0..5 {
            op.begin();
            assert!(op.is_busy());
            op.fail(1, 10, "Reason", String::new());
            waits.push(op.delay());
        }
        assert_eq!(waits, [1, 2, 4, 8, 10]);
        op = Op::Done(());
        op.begin();
        op.fail(1, 10, "Reason", String::new());
        assert_eq!(op.delay(), 1);
    }
}
