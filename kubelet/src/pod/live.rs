//! What a pod's worker knows besides the record: work in flight, probe results, what it waits for.
//! Lost with the kubelet, and found out again.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::images::Ready as ReadyImage;
use crate::volumes::Mounted;

/// A piece of work that runs beside the worker, at most once at a time.
#[derive(Debug, Clone, Default)]
pub enum Op<T> {
    #[default]
    Idle,
    Busy,
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
    pub fn is_busy(&self) -> bool {
        matches!(self, Op::Busy)
    }

    /// Not yet tried, or failed and due again.
    pub fn is_due(&self, now: Timestamp) -> bool {
        match self {
            Op::Idle => true,
            Op::Failed(failure) => failure.retry_at <= now,
            Op::Busy | Op::Done(_) => false,
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

    /// Seconds waited before the last try.
    pub fn delay(&self) -> u32 {
        self.failure().map_or(0, |failure| failure.delay)
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
    /// Waits of earlier failed pulls, seconds.
    pub pull_delay: u32,
    /// Being created and started, with its postStart hook.
    pub starting: bool,
    /// Why it can't be created; none when it can.
    pub config_error: Option<Failure>,
    pub stopping: Option<Stopping>,
    /// Past its startup probe.
    pub started: bool,
    pub ready: bool,
    /// Ends the probes of the current run.
    pub probes: Option<crate::probes::Running>,
}

#[derive(Debug, Default)]
pub struct Live {
    pub volumes: Op<Arc<Mounted>>,
    pub sandbox: Op<()>,
    /// The sandbox is being taken down.
    pub removing: Op<()>,
    /// Files are being removed.
    pub clearing: Op<()>,
    /// The API object is being deleted.
    pub deleting: Op<()>,
    /// When containers began to be stopped: their grace is the pod's, all in all.
    pub ending_since: Option<Timestamp>,
    /// Seconds waited before the last try of each.
    pub mount_delay: u32,
    pub sandbox_delay: u32,
    pub remove_delay: u32,
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
