//! What signals about one container change: pulled, started, ended, probed.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use tracing::debug;

use super::Worker;
use super::signal::{End, Signal};
use crate::events::Kind;
use crate::pod::container::{self, Blame};
use crate::pod::live::{Failure, Op};
use crate::pod::record::{Exit, lost};
use crate::pod::restart::{self, Next};
use crate::pod::{sandbox, termination};
use crate::probes::{self, Kind as ProbeKind};
use crate::{hooks, images, mounts, text};

impl Worker {
    pub(super) fn hear_pulled(&mut self, name: &str, image: Result<images::Ready, images::Error>) {
        match image {
            Ok(ready) => {
                let wanted = self.find(name).and_then(|(container, _)| container.image);
                // The pod may name another by now.
                let is_wanted = wanted.as_ref() == Some(&ready.reference);
                let image = if is_wanted {
                    Op::Done(Arc::new(ready))
                } else {
                    Op::Idle
                };
                self.live.container(name).image = image;
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
                if self.live.container(name).image.delay() > 0 {
                    let message = format!("Back-off pulling image {image:?}");
                    self.tell_of(name, Kind::Normal, "BackOff", message);
                }
                let live = self.live.container(name);
                live.image.fail(10, 300, reason, message);
            }
        }
    }

    pub(super) fn is_current(&self, name: &str, id: &str) -> bool {
        let record = self.record.containers.get(name);
        let current = record.and_then(|record| record.current.as_ref());
        current.is_some_and(|current| current.id == id)
    }

    pub(super) fn hear_started(
        &mut self,
        name: &str,
        id: &str,
        outcome: Result<u32, container::Error>,
    ) {
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
            Err(container::Error::Unwanted) => self.undo_start(name),
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
                let outcome = hooks::run(&target, &spec, &pod_ip, &hook).await;
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
                live.config_error = Some(Failure::after(before, 2, 10, reason, message));
            }
        }
    }

    pub(super) fn hear_hook(&mut self, name: &str, id: &str, succeeded: bool) {
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

    pub(super) fn hear_ended(&mut self, name: &str, id: &str, end: Option<End>) {
        if !self.is_current(name, id) {
            return;
        }
        let policy = self
            .find(name)
            .and_then(|(container, _)| container.termination_message_policy);
        let fallback = policy.as_deref() == Some("FallbackToLogsOnError");
        let paths = self.paths.clone();
        let now = Timestamp::now();
        let is_known = end.is_some();
        let record = self.record.container(name);
        if let Some(current) = &mut record.current
            && current.exit.is_none()
        {
            let message_file = paths.termination_message(name, current.attempt);
            current.exit = Some(match end {
                None => lost(now),
                Some(End { status, starved }) => {
                    let code = i32::try_from(status.code).unwrap_or(255);
                    let fallback = fallback && code != 0;
                    Exit {
                        code,
                        reason: reason(code, starved).to_owned(),
                        message: termination::message(&message_file, &current.log, fallback),
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
        // Written down before the shim forgets it. Whoever ended unseen ended with its shim: the sandbox's removal
        // cleans up after both.
        if self.save() && is_known {
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
        let policy = restart::policy(&self.spec, &spec, role, Some(record));
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
        // With a dead shim the bundle stays: the sandbox's removal cleans up by it.
        let Some(shim) = self.shim.clone() else {
            return;
        };
        let id = current.id.clone();
        let left = [current.bundle.clone(), self.paths.layer(&id)];
        tokio::spawn(async move {
            if !sandbox::end_container(&shim, &id).await {
                return;
            }
            for path in left {
                if let Err(error) = mounts::remove_tree(&path) {
                    debug!(%error, path = %path.display(), "can't remove what a run left");
                }
            }
        });
    }

    pub(super) fn hear_probe(&mut self, news: probes::News) {
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

fn reason(code: i32, starved: bool) -> &'static str {
    match (code, starved) {
        (_, true) => "OOMKilled",
        (0, _) => "Completed",
        _ => "Error",
    }
}
