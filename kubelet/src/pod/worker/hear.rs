//! What each signal changes in the worker's state.

use std::path::PathBuf;
use std::sync::Arc;

use hpk_shim_client::{ExitStatus, Shim};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tracing::{debug, info, warn};

use super::signal::{Existence, Signal};
use super::{Worker, deletion, failed, failure};
use crate::events::Kind;
use crate::pod::container::{self, Blame};
use crate::pod::live::Op;
use crate::pod::phase::Deletion;
use crate::pod::record::{Exit, lost};
use crate::pod::restart::{self, Next};
use crate::pod::sandbox;
use crate::probes::{self, Kind as ProbeKind};
use crate::{hooks, images, mounts, text};

impl Worker {
    pub(super) fn hear(&mut self, signal: Signal) {
        match signal {
            Signal::Spec(pod) => self.hear_spec(pod),
            Signal::Gone => self.hear_gone(),
            Signal::Mounted(outcome) => match *outcome {
                Ok(mounted) => self.live.volumes = Op::Done(Arc::new(mounted)),
                Err(error) => {
                    let message = error.to_string();
                    self.tell(Kind::Warning, "FailedMount", message.clone());
                    let before = self.live.mount_delay;
                    self.live.volumes = failed(before, 1, 16, "FailedMount", message);
                }
            },
            Signal::SandboxMade(outcome) => self.hear_sandbox(*outcome),
            Signal::SandboxEnded { id } => {
                if let Some(sandbox) = &mut self.record.sandbox
                    && sandbox.id == id
                    && sandbox.ready
                {
                    info!(pod = self.record.name, "the sandbox ended");
                    sandbox.ready = false;
                }
            }
            Signal::SandboxRemoved(outcome) => self.hear_removed(*outcome),
            Signal::Pulled { container, image } => self.hear_pulled(&container, *image),
            Signal::Started {
                container,
                id,
                outcome,
            } => self.hear_started(&container, &id, *outcome),
            Signal::HookDone {
                container,
                id,
                succeeded,
            } => self.hear_hook(&container, &id, succeeded),
            Signal::Ended {
                container,
                id,
                status,
            } => self.hear_ended(&container, &id, status),
            Signal::Probe(news) => self.hear_probe(news),
            Signal::Cleared(outcome) => {
                self.live.clearing = match outcome {
                    Ok(()) => Op::Done(()),
                    Err(error) => {
                        warn!(pod = self.record.name, %error, "can't remove the pod's files");
                        failed(
                            self.live.clearing.delay(),
                            1,
                            30,
                            "FailedCleanup",
                            error.to_string(),
                        )
                    }
                };
            }
            Signal::Deleted(outcome) => match outcome {
                Ok(Existence::Deleted) => self.live.deleting = Op::Done(()),
                Ok(Existence::WasGone) => self.hear_gone(),
                Err(error) => {
                    debug!(pod = self.record.name, %error, "can't delete the pod's object");
                    let before = self.live.deleting.delay();
                    self.live.deleting = failed(before, 1, 10, "FailedDelete", error.to_string());
                }
            },
        }
    }

    fn hear_spec(&mut self, pod: Arc<Pod>) {
        let changed = pod.metadata.labels != self.pod.metadata.labels
            || pod.metadata.annotations != self.pod.metadata.annotations;
        if changed {
            self.refresh_at = Timestamp::now();
        }
        self.spec = pod.spec.clone().unwrap_or_default();
        if let Some(asked) = deletion(&pod)
            && !matches!(self.deletion, Some(Deletion::Gone { .. }))
        {
            self.deletion = Some(asked);
            self.hurry(asked.grace());
        }
        // Our own status is newer than what the watch echoes; others' conditions are taken over.
        let mut pod = (*pod).clone();
        if let Some(ours) = &self.sent {
            let theirs = pod.status.take().unwrap_or_default();
            let mut status = ours.clone();
            let conditions = status.conditions.get_or_insert_default();
            for condition in theirs.conditions.into_iter().flatten() {
                let known = conditions
                    .iter_mut()
                    .find(|known| known.type_ == condition.type_);
                match known {
                    Some(known) if OURS.contains(&known.type_.as_str()) => {}
                    Some(known) => *known = condition,
                    None => conditions.push(condition),
                }
            }
            pod.status = Some(status);
        }
        self.pod = Arc::new(pod);
    }

    /// A shorter grace than before hurries what is already ending.
    fn hurry(&self, grace: i64) {
        let deadline = Timestamp::now()
            .checked_add(SignedDuration::from_secs(grace.max(1)))
            .unwrap_or(Timestamp::MAX);
        for live in self.live.containers.values() {
            if let Some(stopping) = &live.stopping {
                stopping.hurry(deadline);
            }
        }
    }

    fn hear_gone(&mut self) {
        // Deleted by force: its containers get a moment, not their grace.
        let grace = match self.deletion {
            Some(asked) => asked.grace(),
            None => 1,
        };
        self.deletion = Some(Deletion::Gone { grace });
        self.hurry(grace);
    }

    fn hear_sandbox(&mut self, outcome: Result<sandbox::Created, sandbox::Error>) {
        match outcome {
            Ok(created) => {
                self.live.sandbox = Op::Done(());
                let Some(sandbox) = &mut self.record.sandbox else {
                    return;
                };
                sandbox.address = Some(created.shim.address().to_owned());
                sandbox.pid = created.pid;
                sandbox.ips = created.ips;
                sandbox.ready = true;
                let id = sandbox.id.clone();
                self.shim = Some(created.shim);
                self.wait_for_sandbox(&id);
            }
            Err(error) => {
                let message = text::chain(&error);
                self.tell(
                    Kind::Warning,
                    "FailedCreatePodSandBox",
                    format!("Failed to create pod sandbox: {message}"),
                );
                self.live.removing = Op::Idle;
                let before = self.live.sandbox_delay;
                self.live.sandbox = failed(before, 1, 15, "FailedCreatePodSandBox", message);
            }
        }
    }

    fn hear_removed(&mut self, outcome: Result<(), sandbox::Error>) {
        match outcome {
            Ok(()) => {
                self.live.removing = Op::Idle;
                self.record.sandbox = None;
                self.shim = None;
                let now = Timestamp::now();
                // Whoever hadn't been heard of ended with the sandbox.
                for record in self.record.containers.values_mut() {
                    if let Some(current) = &mut record.current
                        && current.exit.is_none()
                    {
                        current.exit = Some(lost(now));
                    }
                }
                for live in self.live.containers.values_mut() {
                    live.probes = None;
                    live.stopping = None;
                    live.ready = false;
                    live.started = false;
                }
            }
            Err(error) => {
                let message = text::chain(&error);
                warn!(
                    pod = self.record.name,
                    message, "the sandbox isn't gone yet"
                );
                self.tell(
                    Kind::Warning,
                    "FailedKillPod",
                    format!("error killing pod: {message}"),
                );
                let before = self.live.remove_delay;
                self.live.removing = failed(before, 1, 15, "FailedKillPod", message);
            }
        }
    }

    fn hear_pulled(&mut self, name: &str, image: Result<images::Ready, images::Error>) {
        let before = self.live.container(name).pull_delay;
        match image {
            Ok(ready) => {
                let live = self.live.container(name);
                live.image = Op::Done(Arc::new(ready));
                live.pull_delay = 0;
            }
            Err(error) => {
                let reason = error.reason();
                let message = error.to_string();
                let image = self
                    .find(name)
                    .and_then(|(container, _)| container.image)
                    .unwrap_or_default();
                let told = match reason {
                    "ErrImagePull" => format!("Failed to pull image {image:?}: {message}"),
                    _ => message.clone(),
                };
                self.tell_of(name, Kind::Warning, "Failed", told);
                self.tell_of(name, Kind::Warning, "Failed", format!("Error: {reason}"));
                if before > 0 {
                    let message = format!("Back-off pulling image {image:?}");
                    self.tell_of(name, Kind::Normal, "BackOff", message);
                }
                self.live.container(name).image = failed(before, 10, 300, reason, message);
            }
        }
    }

    fn is_current(&self, name: &str, id: &str) -> bool {
        let record = self.record.containers.get(name);
        let current = record.and_then(|record| record.current.as_ref());
        current.is_some_and(|current| current.id == id)
    }

    fn hear_started(&mut self, name: &str, id: &str, outcome: Result<u32, container::Error>) {
        self.live.container(name).starting = false;
        if !self.is_current(name, id) {
            return;
        }
        let kept = matches!(&outcome, Err(error) if error.blame() != Blame::Runtime);
        if !kept {
            // The next start asks for the image anew.
            self.live.container(name).image = Op::Idle;
        }
        match outcome {
            Ok(_) => self.began(name, id),
            Err(error) => self.did_not_begin(name, &error),
        }
    }

    fn began(&mut self, name: &str, id: &str) {
        let Some((spec, _)) = self.find(name) else {
            return;
        };
        self.tell_of(
            name,
            Kind::Normal,
            "Created",
            "Container created".to_owned(),
        );
        self.tell_of(
            name,
            Kind::Normal,
            "Started",
            "Container started".to_owned(),
        );
        if let Some(current) = &mut self.record.container(name).current {
            current.started_at = Some(Timestamp::now());
        }
        let live = self.live.container(name);
        live.started = spec.startup_probe.is_none();
        live.ready = live.started && spec.readiness_probe.is_none();
        self.wait_for(name, id);
        self.start_probes(name);
        let hook = spec.lifecycle.as_ref().and_then(|l| l.post_start.clone());
        if let (Some(hook), Some(target)) = (hook, self.target(name)) {
            // The next container waits for the hook.
            self.live.container(name).starting = true;
            let (pod_ip, sender) = (self.pod_ip(), self.sender.clone());
            let (container, id) = (name.to_owned(), id.to_owned());
            tokio::spawn(async move {
                let limit = std::time::Duration::from_secs(24 * 3600);
                let outcome = hooks::run(&target, &spec, &pod_ip, &hook, limit).await;
                if let Err(error) = &outcome {
                    debug!(
                        container,
                        error = text::chain(error),
                        "postStart hook failed"
                    );
                }
                let _ = sender.send(Signal::HookDone {
                    container,
                    id,
                    succeeded: outcome.is_ok(),
                });
            });
        }
    }

    fn did_not_begin(&mut self, name: &str, error: &container::Error) {
        let message = error.message();
        self.tell_of(name, Kind::Warning, "Failed", format!("Error: {message}"));
        match error.blame() {
            Blame::Runtime => {
                let exit = Exit {
                    code: 128,
                    reason: "StartError".to_owned(),
                    message,
                    at: Timestamp::now(),
                };
                self.discard(name);
                if let Some(current) = &mut self.record.container(name).current {
                    current.exit = Some(exit);
                }
                self.tell_backoff(name);
            }
            blame => {
                let reason = match blame {
                    Blame::Config => "CreateContainerConfigError",
                    _ => "CreateContainerError",
                };
                self.discard(name);
                self.undo_start(name);
                let live = self.live.container(name);
                let before = live.config_error.as_ref().map_or(0, |f| f.delay);
                live.config_error = Some(failure(before, 2, 10, reason, message));
            }
        }
    }

    fn hear_hook(&mut self, name: &str, id: &str, succeeded: bool) {
        self.live.container(name).starting = false;
        if succeeded || !self.is_current(name, id) {
            return;
        }
        self.tell_of(
            name,
            Kind::Warning,
            "FailedPostStartHook",
            "PostStartHook failed".to_owned(),
        );
        let grace = self.spec.termination_grace_period_seconds.unwrap_or(30);
        let message = format!("FailedPostStartHook: container {name} is stopped");
        self.stop_container(name, grace, Some(message));
    }

    fn hear_ended(&mut self, name: &str, id: &str, status: Option<ExitStatus>) {
        if !self.is_current(name, id) {
            return;
        }
        let policy = self
            .find(name)
            .and_then(|(container, _)| container.termination_message_policy);
        let fallback = policy.as_deref() == Some("FallbackToLogsOnError");
        let paths = self.paths.clone();
        let now = Timestamp::now();
        let oom = self.agent.take_oom(id);
        let is_known = status.is_some();
        let record = self.record.container(name);
        if let Some(current) = &mut record.current
            && current.exit.is_none()
        {
            let message_file = paths.termination_message(name, current.attempt);
            current.exit = Some(match status {
                None => lost(now),
                Some(status) => {
                    let code = i32::try_from(status.code).unwrap_or(255);
                    let fallback = fallback && code != 0;
                    Exit {
                        code,
                        reason: reason(code, oom).to_owned(),
                        message: container::termination_message(
                            &message_file,
                            &current.log,
                            fallback,
                        ),
                        at: Timestamp::try_from(status.at).unwrap_or(now),
                    }
                }
            });
        }
        let live = self.live.container(name);
        live.probes = None;
        live.stopping = None;
        live.ready = false;
        live.started = false;
        // Whoever ended unseen ended with its shim: the sandbox's removal cleans up after both.
        if is_known {
            self.discard(name);
        }
        self.tell_backoff(name);
    }

    /// Says that a container waits for its next start, if it does.
    fn tell_backoff(&self, name: &str) {
        let Some((spec, role)) = self.find(name) else {
            return;
        };
        let Some(record) = self.record.containers.get(name) else {
            return;
        };
        let policy = restart::policy(&self.spec, &spec, role);
        let next = restart::next(record, policy, Timestamp::now());
        if matches!(next, Next::Wait { .. }) && !self.record.state.is_over() {
            let message = format!(
                "Back-off restarting failed container {name} in pod {}_{}({})",
                self.record.name, self.record.namespace, self.record.uid
            );
            self.tell_of(name, Kind::Warning, "BackOff", message);
        }
    }

    /// Lets the shim forget a run that ended, and removes its bundle and layer.
    fn discard(&self, name: &str) {
        let record = self.record.containers.get(name);
        let Some(current) = record.and_then(|record| record.current.as_ref()) else {
            return;
        };
        if self.record.state.is_over() {
            // The whole sandbox is about to go.
            return;
        }
        let layer = self.paths.layer(&current.id);
        discard(
            self.shim.clone(),
            current.id.clone(),
            current.bundle.clone(),
            layer,
        );
    }

    fn hear_probe(&mut self, news: probes::News) {
        let name = news.container.as_str();
        if !self.is_current(name, &news.id) {
            return;
        }
        let Some((spec, _)) = self.find(name) else {
            return;
        };
        match (news.kind, news.success) {
            (ProbeKind::Startup, true) => {
                let live = self.live.container(name);
                live.started = true;
                live.ready = spec.readiness_probe.is_none();
                self.start_probes(name);
            }
            (ProbeKind::Readiness, ready) => self.live.container(name).ready = ready,
            (ProbeKind::Liveness, true) => {}
            (kind, false) => {
                let probe = match kind {
                    ProbeKind::Startup => &spec.startup_probe,
                    _ => &spec.liveness_probe,
                };
                let own = probe
                    .as_ref()
                    .and_then(|p| p.termination_grace_period_seconds);
                let grace = own
                    .or(self.spec.termination_grace_period_seconds)
                    .unwrap_or(30);
                let what = if kind == ProbeKind::Startup {
                    "startup"
                } else {
                    "liveness"
                };
                let message = format!("Container {name} failed {what} probe, will be restarted");
                self.stop_container(name, grace, Some(message));
            }
        }
    }
}

/// Conditions that this kubelet decides.
const OURS: &[&str] = &[
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
];

fn reason(code: i32, oom: bool) -> &'static str {
    match (code, oom) {
        (_, true) => "OOMKilled",
        (0, _) => "Completed",
        _ => "Error",
    }
}

fn discard(shim: Option<Shim>, id: String, bundle: PathBuf, layer: PathBuf) {
    tokio::spawn(async move {
        // With a dead shim the bundle stays: the sandbox's removal cleans up by it.
        let Some(shim) = shim else {
            return;
        };
        if !sandbox::end_container(&shim, &id).await {
            return;
        }
        for path in [bundle, layer] {
            if let Err(error) = mounts::remove_tree(&path) {
                debug!(%error, path = %path.display(), "can't remove what a run left");
            }
        }
    });
}
