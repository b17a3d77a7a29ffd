//! Steps about one container: its image, its start, its end, its probes.

use std::sync::Arc;

use hpk_shim_client::Shim;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tracing::debug;

use super::Worker;
use super::act::wait;
use super::events::PullWitness;
use super::signal::{End, Signal};
use crate::events::Kind;
use crate::exec::Target;
use crate::pod::container::{self, Start};
use crate::pod::ephemeral;
use crate::pod::kill::{self, Kill};
use crate::pod::live::{Failure, Op, Stopping};
use crate::pod::record::Instance;
use crate::pod::restart;
use crate::{images, probes, text};

impl Worker {
    pub(super) fn pull_image(&mut self, name: &str) {
        let Some((spec, _)) = self.find(name) else {
            return;
        };
        self.live.container(name).image.begin();
        let agent = Arc::clone(&self.agent);
        let image = spec.image.clone().unwrap_or_default();
        let policy = images::policy(spec.image_pull_policy.as_deref(), &image);
        let witness = PullWitness {
            recorder: agent.recorder.clone(),
            pod: Arc::clone(&self.pod),
            container: Some((name.to_owned(), self.role(name))),
            image: image.clone(),
        };
        let container = name.to_owned();
        self.spawn(async move {
            let keyring = images::keyring_of(&witness.pod, &agent.reader, &agent.recorder).await;
            let image = agent
                .images
                .ensure(&image, policy, &keyring, &witness)
                .await;
            Signal::Pulled {
                container,
                image: Box::new(image),
            }
        });
    }

    pub(super) fn start_container(&mut self, name: &str) {
        let (Some((spec, _)), Some(sandbox), Some(shim)) = (
            self.find(name),
            self.record.sandbox.clone(),
            self.shim.clone(),
        ) else {
            return;
        };
        let (Some(volumes), Some(image)) = (
            self.live.volumes.done().cloned(),
            self.live.container(name).image.done().cloned(),
        ) else {
            return;
        };
        let id = match crate::ids::fresh() {
            Ok(id) => id,
            Err(error) => {
                return self.cannot_create(name, error.to_string());
            }
        };
        let now = Timestamp::now();
        let sandbox_attempt = self.record.sandbox_attempt;
        let log_of = |attempt: u32| self.paths.log(name, attempt);
        let record = self.record.containers.entry(name.to_owned()).or_default();
        let attempt = record.next_attempt();
        let instance = Instance {
            id: id.clone(),
            attempt,
            sandbox: sandbox_attempt,
            image: image.reference.clone(),
            image_id: image.id.clone(),
            log: log_of(attempt),
            bundle: self.paths.bundle(&id),
            started_at: None,
            exit: None,
            stop_signal: image
                .config
                .config()
                .as_ref()
                .and_then(|c| c.stop_signal().clone()),
            resources: spec.resources.clone(),
            whole: self.spec.resources.clone(),
            replaced: false,
        };
        if let Some(current) = &record.current {
            if current.image != image.reference {
                record.backoff_seconds = 0;
            }
            restart::raise_backoff(record, now);
            record.previous = record.current.take();
        }
        record.current = Some(instance);
        if attempt >= 2 {
            // Only this run's log and the one before are kept.
            remove_old_logs(&log_of(attempt - 2));
        }
        let live = self.live.container(name);
        live.starting = true;
        live.config_error = None;
        live.resizing = Op::Idle;
        if !self.save() {
            self.undo_start(name);
            return self.cannot_create(name, "the pod's state can't be written".to_owned());
        }
        let start = Start {
            pod: Arc::clone(&self.pod),
            container: spec,
            image,
            volumes,
            sandbox,
            target: ephemeral::target(&self.spec, name).map(|target| container::Target {
                id: self.running_id(target),
                name: target.to_owned(),
            }),
            paths: self.paths.clone(),
            unwanted: self.live.unwanted.clone(),
            id: id.clone(),
            attempt,
            log: self.paths.log(name, attempt),
        };
        let agent = Arc::clone(&self.agent);
        let container = name.to_owned();
        self.spawn(async move {
            let outcome = Box::new(container::start(&agent, &shim, &start).await);
            Signal::Started {
                container,
                id,
                outcome,
            }
        });
    }

    fn running_id(&self, name: &str) -> Option<String> {
        let current = self.record.containers.get(name)?.current.as_ref()?;
        current.is_running().then(|| current.id.clone())
    }

    fn cannot_create(&mut self, name: &str, message: String) {
        let failure = Failure::after(0, 2, 10, "CreateContainerError", message);
        self.live.container(name).config_error = Some(failure);
    }

    /// The run that was about to begin never was.
    pub(super) fn undo_start(&mut self, name: &str) {
        let record = self.record.container(name);
        record.current = record.previous.take();
        self.live.container(name).starting = false;
    }

    pub(super) fn stop_container(&mut self, name: &str, grace: i64, message: Option<String>) {
        let (Some((spec, _)), Some(target)) = (self.find(name), self.target(name)) else {
            return;
        };
        if self.live.container(name).stopping.is_some() {
            return;
        }
        let message = message.unwrap_or_else(|| format!("Stopping container {name}"));
        self.tell_of(name, Kind::Normal, "Killing", message);
        let deadline = Timestamp::now()
            .checked_add(SignedDuration::from_secs(grace.max(0)))
            .unwrap_or(Timestamp::MAX);
        let (sender, receiver) = watch::channel(deadline);
        let current = self
            .record
            .containers
            .get(name)
            .and_then(|r| r.current.as_ref());
        let stop_signal = spec
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone())
            .or_else(|| current.and_then(|instance| instance.stop_signal.clone()));
        let task = tokio::spawn(kill::stop(Kill {
            agent: Arc::clone(&self.agent),
            pod: Arc::clone(&self.pod),
            role: self.role(name),
            container: spec,
            target,
            pod_ip: self.pod_ip(),
            stop_signal,
            deadline: receiver,
        }));
        let live = self.live.container(name);
        if let Some(probes) = &mut live.probes {
            probes.keep_readiness();
        }
        live.stopping = Some(Stopping::new(sender, task));
    }

    /// The running container as something to exec in.
    pub(super) fn target(&self, name: &str) -> Option<Target> {
        let current = self.record.containers.get(name)?.current.as_ref()?;
        Some(Target {
            shim: self.shim.clone()?,
            id: current.id.clone(),
            bundle: current.bundle.clone(),
        })
    }

    /// Probes of a container that runs.
    pub(super) fn start_probes(&mut self, name: &str) {
        let (Some((spec, role)), Some(target)) = (self.find(name), self.target(name)) else {
            return;
        };
        let started = self.live.container(name).started;
        let current = self
            .record
            .containers
            .get(name)
            .and_then(|r| r.current.as_ref());
        let subject = probes::Subject {
            agent: Arc::clone(&self.agent),
            pod: Arc::clone(&self.pod),
            container: spec,
            target,
            pod_ip: self.pod_ip(),
            role,
            started_at: current
                .and_then(|instance| instance.started_at)
                .unwrap_or_else(Timestamp::now),
        };
        self.live.container(name).probes = Some(probes::start(&subject, started, &self.sender));
    }

    /// Waits for a run's end beside the worker.
    pub(super) fn wait_for(&self, name: &str, id: &str) {
        let Some(shim) = self.shim.clone() else {
            return;
        };
        let (container, id) = (name.to_owned(), id.to_owned());
        self.spawn(async move {
            let end = match wait(&shim, &id).await {
                Some((status, shim)) => Some(End {
                    status,
                    starved: was_starved(&shim, &id).await,
                }),
                None => None,
            };
            Signal::Ended { container, id, end }
        });
    }
}

/// How long a shim may take over a container's figures when it has ended.
const FIGURES_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);

/// Whether the kernel has killed a process of the container for want of memory. Its figures are asked for, which its
/// shim has until the task is deleted, and not the event: that may come late, or while nobody listens.
async fn was_starved(shim: &Shim, id: &str) -> bool {
    match tokio::time::timeout(FIGURES_LIMIT, shim.stats(id)).await {
        Ok(Ok(stats)) => stats.oom_kills > 0,
        Ok(Err(error)) => {
            debug!(id, error = text::chain(&error), "no figures of its end");
            false
        }
        Err(_) => {
            debug!(id, "no figures of its end in time");
            false
        }
    }
}

/// The log of a run and its rotated parts.
fn remove_old_logs(log: &std::path::Path) {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return;
    };
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let file = file.to_string_lossy();
        let rotated = file
            .strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        if rotated && let Err(error) = std::fs::remove_file(entry.path()) {
            debug!(%error, file = %file, "can't remove an old log");
        }
    }
}
