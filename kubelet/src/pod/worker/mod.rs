//! One pod's worker: a task that owns all the pod's state. It plans, starts what the plan says
//! beside itself, and hears what came of it as signals; so it always hears a deletion at once.
//!
//! - `signal`: what it may hear
//! - `act`: doing a plan's steps; `act_container`: those about one container
//! - `hear`: what each signal changes; `hear_container`: those about one container
//! - `devices`: taking them and letting them go
//! - `resize`: giving the pod other resources while it runs
//! - `events`: what it tells users
//! - `adopt`: taking over what an earlier kubelet left running

mod act;
mod act_container;
mod adopt;
mod devices;
mod events;
mod hear;
mod hear_container;
mod resize;
mod signal;

use std::sync::Arc;
use std::time::Duration;

use hpk_shim_client::Shim;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tracing::{debug, error};

pub use signal::Signal;

use super::live::Live;
use super::paths::Paths;
use super::phase::{self, Deletion, View};
use super::record::{PodRecord, Verdict};
use super::restart::Role;
use super::state::State;
use super::{admission, ports};
use crate::access::Entry;
use crate::agent::Agent;
use crate::eviction::admit;
use crate::status;
use crate::status::sync::Known;

/// Seconds between refreshes of what volumes hold from the API.
const REFRESH: SignedDuration = SignedDuration::from_secs(60);

/// A pod's worker.
#[derive(Debug)]
pub struct Worker {
    agent: Arc<Agent>,
    /// As the API server has it, but for `spec`.
    pod: Arc<Pod>,
    /// The pod's, with the resources that it has been promised.
    spec: PodSpec,
    /// The pod's, as the API server has it.
    desired: PodSpec,
    paths: Paths,
    record: PodRecord,
    saved: Option<PodRecord>,
    live: Live,
    deletion: Option<Deletion>,
    shim: Option<Shim>,
    inbox: mpsc::UnboundedReceiver<Signal>,
    sender: mpsc::UnboundedSender<Signal>,
    status: status::sync::Sender,
    sent: Option<PodStatus>,
    refresh_at: Timestamp,
}

/// A way to reach a worker.
#[derive(Debug, Clone)]
pub struct Handle {
    sender: mpsc::UnboundedSender<Signal>,
}

impl Handle {
    /// False if the worker has ended.
    pub fn send(&self, signal: Signal) -> bool {
        self.sender.send(signal).is_ok()
    }
}

/// Starts the worker of a pod that the API server has, with what an earlier kubelet wrote of it.
pub fn start(
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    record: Option<PodRecord>,
) -> (Handle, impl Future<Output = ()> + Send) {
    let mut record = record.unwrap_or_else(|| PodRecord::new(&pod, Timestamp::now()));
    record.hear_of_end(&pod);
    let deletion = deletion(&pod);
    let known = Known::of(&pod);
    let status = status::sync::Sender::start(agent.pods_client.clone(), address(&record), known);
    let (sender, worker) = build(agent, pod, record, deletion, status);
    (Handle { sender }, worker.run())
}

/// Starts the worker of a pod that only this node knows; `status` takes its statuses.
pub fn start_static(
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    record: Option<PodRecord>,
    status: status::sync::Sender,
) -> (Handle, impl Future<Output = ()> + Send) {
    let record = record.unwrap_or_else(|| PodRecord::new(&pod, Timestamp::now()));
    let (sender, worker) = build(agent, pod, record, None, status);
    (Handle { sender }, worker.run())
}

/// Starts the worker of a pod that is only on this node any more: it takes down what is left.
pub fn start_orphan(
    agent: Arc<Agent>,
    record: PodRecord,
) -> (Handle, impl Future<Output = ()> + Send) {
    let mut pod = Pod::default();
    pod.metadata.name = Some(record.name.clone());
    pod.metadata.namespace = Some(record.namespace.clone());
    pod.metadata.uid = Some(record.uid.clone());
    pod.spec = Some(PodSpec::default());
    let deletion = Deletion::Gone {
        grace: record.grace_seconds,
    };
    let status = status::sync::Sender::start(
        agent.pods_client.clone(),
        address(&record),
        Known::default(),
    );
    let (sender, worker) = build(agent, Arc::new(pod), record, Some(deletion), status);
    (Handle { sender }, worker.run())
}

fn build(
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    record: PodRecord,
    deletion: Option<Deletion>,
    status: status::sync::Sender,
) -> (mpsc::UnboundedSender<Signal>, Worker) {
    let (sender, inbox) = mpsc::unbounded_channel();
    let desired = pod.spec.clone().unwrap_or_default();
    let mut worker = Worker {
        paths: Paths::new(&agent.config, &record.namespace, &record.name, &record.uid),
        status,
        spec: desired.clone(),
        desired,
        pod,
        record,
        saved: None,
        live: Live::default(),
        deletion,
        shim: None,
        inbox,
        sender: sender.clone(),
        sent: None,
        refresh_at: Timestamp::now() + REFRESH,
        agent,
    };
    worker.apply_allocation();
    (sender, worker)
}

fn address(record: &PodRecord) -> status::sync::Address {
    status::sync::Address {
        namespace: record.namespace.clone(),
        name: record.name.clone(),
        uid: record.uid.clone(),
    }
}

/// Whether, and with how much grace, the pod is to go.
fn deletion(pod: &Pod) -> Option<Deletion> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    Some(Deletion::Asked { grace })
}

impl Worker {
    async fn run(mut self) {
        if let Err(error) = self.paths.ensure() {
            error!(pod = self.record.name, %error, "can't make the pod's folders");
        }
        self.adopt().await;
        loop {
            let wake = self.act();
            self.save();
            self.publish();
            if self.record.state == State::Removed {
                break;
            }
            let wait = match wake {
                Some(at) => Duration::try_from(at.duration_since(Timestamp::now()))
                    .unwrap_or_default()
                    .max(Duration::from_millis(1)),
                None => Duration::from_secs(3600),
            };
            tokio::select! {
                signal = self.inbox.recv() => match signal {
                    Some(signal) => self.hear(signal),
                    None => break,
                },
                () = tokio::time::sleep(wait) => {}
            }
            // What else has come is heard before the next look: one status for all of it.
            while let Ok(signal) = self.inbox.try_recv() {
                self.hear(signal);
            }
        }
        self.agent.registry.remove(&self.record.uid);
        self.agent.reader.forget(&self.record.uid);
        self.agent.probes.forget(&self.record.uid);
        debug!(pod = self.record.name, "removed");
    }

    /// Plans and does until there is nothing to do; when to look again.
    fn act(&mut self) -> Option<Timestamp> {
        // A plan that never comes to rest is a bug; the bound keeps it from eating the node.
        for _ in 0..64 {
            self.free_devices();
            let now = Timestamp::now();
            let plan = phase::plan(&View {
                spec: &self.spec,
                record: &self.record,
                live: &self.live,
                deletion: self.deletion,
                refused: self.refused(),
                resize: self.resize_verdict(),
                now,
            });
            if plan.steps.is_empty() {
                return self.with_refresh(plan.wake, now);
            }
            for step in plan.steps {
                self.step(step);
            }
        }
        error!(pod = self.record.name, state = ?self.record.state, "the plan doesn't come to rest");
        Some(Timestamp::now() + SignedDuration::from_secs(1))
    }

    /// Refreshes volumes when that is due, and wakes for the next time.
    fn with_refresh(&mut self, wake: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        let runs = matches!(self.record.state, State::Initializing | State::Running);
        if !runs || !crate::volumes::apply::has_payload(&self.pod) {
            return wake;
        }
        if self.refresh_at <= now {
            self.refresh_at = now + REFRESH;
            self.refresh_volumes();
        }
        Some(wake.map_or(self.refresh_at, |wake| wake.min(self.refresh_at)))
    }

    fn refused(&self) -> Option<Verdict> {
        if self.record.state != State::Pending {
            return None;
        }
        let (used, pods) = self.agent.registry.used(&self.record.uid);
        let allowed = &self.agent.config.args.allowed_unsafe_sysctls;
        let allocatable = &self.agent.facts.allocatable;
        let standing = *self.agent.standing.borrow();
        admit::refuse(&self.pod, &standing)
            .or_else(|| self.lacks_devices())
            .or_else(|| admission::refuse(&self.pod, allowed, allocatable, &used, pods))
            .or_else(|| {
                let taken = self.agent.registry.host_ports(&self.record.uid);
                ports::refuse(&self.spec, &taken)
            })
    }

    fn go(&mut self, to: State) {
        match self.record.state.advance(to) {
            Ok(state) => {
                debug!(pod = self.record.name, from = ?self.record.state, to = ?state, "moves");
                self.record.state = state;
            }
            Err(illegal) => error!(pod = self.record.name, %illegal, "refused"),
        }
    }

    /// Writes the record if it changed. False if it can't be written.
    fn save(&mut self) -> bool {
        if self.record.state == State::Removed || self.live.clearing.done().is_some() {
            return true;
        }
        if self.saved.as_ref() == Some(&self.record) {
            return true;
        }
        match self.record.save(&self.paths.run) {
            Ok(()) => {
                self.saved = Some(self.record.clone());
                true
            }
            Err(error) => {
                error!(
                    pod = self.record.name,
                    error = crate::text::chain(&error),
                    "not saved"
                );
                false
            }
        }
    }

    /// Tells the API server and the node's own HTTP server how the pod stands.
    fn publish(&mut self) {
        let host_ips: Vec<String> = self
            .agent
            .node_ips()
            .iter()
            .map(ToString::to_string)
            .collect();
        let status = status::compute(&status::Inputs {
            pod: &self.pod,
            spec: &self.spec,
            record: &self.record,
            live: &self.live,
            host_ips: &host_ips,
            now: Timestamp::now(),
        });
        let gone = matches!(self.deletion, Some(Deletion::Gone { .. }));
        if self.sent.as_ref() != Some(&status) {
            // The next status takes its transition times from this one.
            let mut pod = (*self.pod).clone();
            pod.status = Some(status.clone());
            self.pod = Arc::new(pod);
            if !gone {
                self.status.send(status.clone());
            }
            self.sent = Some(status);
        }
        let address = self.shim.as_ref().map(Shim::address);
        self.agent.registry.publish(
            &self.record.uid,
            Entry::new(&self.pod, &self.record, address, self.handle()),
        );
    }

    fn handle(&self) -> Handle {
        Handle {
            sender: self.sender.clone(),
        }
    }

    fn find(&self, name: &str) -> Option<(Container, Role)> {
        phase::roles(&self.spec)
            .find(|(container, _)| container.name == name)
            .map(|(container, role)| (container.into_owned(), role))
    }

    fn role(&self, name: &str) -> Role {
        self.find(name).map_or(Role::App, |(_, role)| role)
    }

    fn pod_ip(&self) -> String {
        let sandbox = self.record.sandbox.as_ref();
        let first = sandbox.and_then(|sandbox| sandbox.ips.first());
        first.cloned().unwrap_or_default()
    }
}
