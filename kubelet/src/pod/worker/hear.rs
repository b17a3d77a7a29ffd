//! What each signal changes in the worker's state.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tracing::{debug, info, warn};

use super::signal::{Existence, Signal};
use super::{Worker, deletion};
use crate::events::Kind;
use crate::pod::live::Op;
use crate::pod::phase::{self, Deletion};
use crate::pod::record::lost;
use crate::pod::sandbox;
use crate::status::conditions;
use crate::text;

impl Worker {
    pub(super) fn hear(&mut self, signal: Signal) {
        match signal {
            Signal::Spec(pod) => self.hear_spec(pod),
            Signal::Gone => self.hear_gone(),
            Signal::Withdrawn => {
                let grace = self.record.grace_seconds;
                self.deletion = Some(Deletion::Gone { grace });
            }
            Signal::End(order) => {
                if !self.record.state.is_over() {
                    self.record.order = Some(order);
                }
            }
            Signal::Mounted(outcome) => match *outcome {
                Ok(mut mounted) => {
                    self.record.note_volume_images(&mut mounted);
                    self.live.volumes = Op::Done(Arc::new(mounted));
                }
                Err(error) => {
                    let message = error.to_string();
                    self.tell(Kind::Warning, "FailedMount", message.clone());
                    self.live.volumes.fail(1, 16, "FailedMount", message);
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
            Signal::Ended { container, id, end } => self.hear_ended(&container, &id, end),
            Signal::Probe(news) => self.hear_probe(news),
            Signal::Resized {
                container,
                id,
                resources,
                whole,
                outcome,
            } => self.hear_resized(&container, &id, (*resources, *whole), *outcome),
            Signal::Cleared(outcome) => match outcome {
                Ok(()) => self.live.clearing = Op::Done(()),
                Err(error) => {
                    warn!(pod = self.record.name, %error, "can't remove the pod's files");
                    let message = error.to_string();
                    self.live.clearing.fail(1, 30, "FailedCleanup", message);
                }
            },
            Signal::Emptied(outcome) => match outcome {
                Ok(()) => self.live.emptying = Op::Done(()),
                Err(error) => {
                    warn!(pod = self.record.name, %error, "can't remove the pod's volumes");
                    let message = error.to_string();
                    self.live.emptying.fail(1, 30, "FailedCleanup", message);
                }
            },
            Signal::Deleted(outcome) => match outcome {
                Ok(Existence::Deleted) => self.live.deleting = Op::Done(()),
                Ok(Existence::WasGone) => self.hear_gone(),
                Err(error) => {
                    debug!(pod = self.record.name, %error, "can't delete the pod's object");
                    let message = error.to_string();
                    self.live.deleting.fail(1, 10, "FailedDelete", message);
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
        let spec = pod.spec.clone().unwrap_or_default();
        self.forget_images(&spec);
        self.desired = spec.clone();
        self.spec = spec;
        if let Some(asked) = deletion(&pod)
            && !matches!(self.deletion, Some(Deletion::Gone { .. }))
        {
            self.deletion = Some(asked);
            self.hurry(asked.grace());
        }
        self.record.hear_of_end(&pod);
        self.status.saw(&pod);
        // Our own status is newer than what the watch echoes; others' conditions are taken over.
        let mut pod = (*pod).clone();
        if let Some(ours) = &self.sent {
            let theirs = pod.status.take().unwrap_or_default();
            let mut status = ours.clone();
            if self.record.over.is_some() {
                status.reason = theirs.reason;
                status.message = theirs.message;
            }
            let conditions = status.conditions.get_or_insert_default();
            for condition in theirs.conditions.into_iter().flatten() {
                let known = conditions
                    .iter_mut()
                    .find(|known| known.type_ == condition.type_);
                match known {
                    Some(known) if conditions::OURS.contains(&known.type_.as_str()) => {}
                    Some(known) => *known = condition,
                    // Ours, and over by now.
                    None if conditions::OURS.contains(&condition.type_.as_str()) => {}
                    None => conditions.push(condition),
                }
            }
            pod.status = Some(status);
        }
        self.pod = Arc::new(pod);
        self.apply_allocation();
    }

    /// What was pulled, or couldn't be, for containers that `spec` gives another image.
    fn forget_images(&mut self, spec: &PodSpec) {
        for (container, _) in phase::roles(spec) {
            let known = self.find(&container.name);
            let changed = known.is_some_and(|(known, _)| known.image != container.image);
            if !changed {
                continue;
            }
            let live = self.live.container(&container.name);
            live.image_changed = Some(Timestamp::now());
            // A pull under way is looked at when it ends.
            if !live.image.is_busy() {
                live.image = Op::Idle;
            }
        }
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
            Err(sandbox::Error::Unwanted) => {
                self.live.sandbox = Op::Idle;
                self.live.removing = Op::Idle;
            }
            Err(error) => {
                let message = text::chain(&error);
                self.tell(
                    Kind::Warning,
                    "FailedCreatePodSandBox",
                    format!("Failed to create pod sandbox: {message}"),
                );
                self.live.removing = Op::Idle;
                self.no_sandbox(message);
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
                self.live.removing.fail(1, 15, "FailedKillPod", message);
            }
        }
    }
}
