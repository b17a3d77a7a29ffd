//! Doing the steps of a plan: each starts work beside the worker and returns at once.

use std::sync::Arc;

use hpk_shim_client::Shim;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tokio::sync::watch;
use tracing::debug;

use super::events::PullWitness;
use super::signal::{Existence, Signal};
use super::{Worker, failed};
use crate::events::Kind;
use crate::exec::Target;
use crate::pod::container::{self, Start};
use crate::pod::kill::{self, Kill};
use crate::pod::live::{Op, Stopping};
use crate::pod::paths::Paths;
use crate::pod::phase::Step;
use crate::pod::record::Instance;
use crate::pod::restart;
use crate::pod::sandbox;
use crate::pod::state::State;
use crate::{images, mounts, probes, status, text, volumes};

impl Worker {
    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Move(state) => {
                if state == State::Terminating {
                    self.live.removing = Op::Idle;
                }
                if matches!(state, State::Finishing | State::Terminating) {
                    self.live.ending_since = Some(Timestamp::now());
                }
                self.go(state);
            }
            Step::Fail(verdict) => {
                self.tell(Kind::Warning, &verdict.reason, verdict.message.clone());
                self.record.verdict = Some(verdict);
            }
            Step::MountVolumes => self.mount_volumes(),
            Step::CreateSandbox => self.create_sandbox(),
            Step::ReplaceSandbox => {
                let message = "Pod sandbox changed, it will be killed and re-created.";
                self.tell(Kind::Normal, "SandboxChanged", message.to_owned());
                self.live.sandbox = Op::Idle;
                self.live.removing = Op::Idle;
            }
            Step::PullImage { container } => self.pull_image(&container),
            Step::StartContainer { container } => self.start_container(&container),
            Step::StopContainer {
                container,
                grace,
                message,
            } => self.stop_container(&container, grace, message),
            Step::RemoveSandbox => self.remove_sandbox(),
            Step::RemoveFiles => self.remove_files(),
            Step::DeleteFromApi => self.delete_from_api(),
        }
    }

    fn spawn<F>(&self, work: F)
    where
        F: Future<Output = Signal> + Send + 'static,
    {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            // A worker that has ended doesn't care any more.
            let _ = sender.send(work.await);
        });
    }

    fn mount_volumes(&mut self) {
        self.live.mount_delay = self.live.volumes.delay();
        self.live.volumes = Op::Busy;
        let (agent, pod) = (Arc::clone(&self.agent), Arc::clone(&self.pod));
        let dirs = self.paths.volumes();
        let facts = agent.facts_for(&[]);
        self.spawn(async move {
            let outcome = volumes::mount_all(&agent.reader, &pod, &facts, &dirs).await;
            Signal::Mounted(Box::new(outcome))
        });
    }

    pub(super) fn refresh_volumes(&self) {
        let (agent, pod) = (Arc::clone(&self.agent), Arc::clone(&self.pod));
        let dirs = self.paths.volumes();
        let facts = agent.facts_for(&[]);
        tokio::spawn(async move {
            if let Err(error) = volumes::refresh(&agent.reader, &pod, &facts, &dirs).await {
                debug!(error = text::chain(&error), "can't refresh a volume");
            }
        });
    }

    fn create_sandbox(&mut self) {
        let before = self.live.sandbox.delay();
        let id = match crate::ids::fresh() {
            Ok(id) => id,
            Err(error) => {
                let message = error.to_string();
                self.live.sandbox = failed(before, 1, 15, "FailedCreatePodSandBox", message);
                return;
            }
        };
        self.record.sandbox_attempt += 1;
        let intent = sandbox::intend(&self.agent, &self.pod, &self.paths, id);
        self.record.sandbox = Some(intent.clone());
        if !self.save() {
            self.record.sandbox = None;
            let message = "the pod's state can't be written".to_owned();
            self.live.sandbox = failed(before, 1, 15, "FailedCreatePodSandBox", message);
            return;
        }
        self.live.sandbox_delay = before;
        self.live.sandbox = Op::Busy;
        let (agent, pod) = (Arc::clone(&self.agent), Arc::clone(&self.pod));
        let paths = self.paths.clone();
        self.spawn(async move {
            Signal::SandboxMade(Box::new(sandbox::create(agent, pod, paths, intent).await))
        });
    }

    fn pull_image(&mut self, name: &str) {
        let Some((spec, _)) = self.find(name) else {
            return;
        };
        let live = self.live.container(name);
        live.pull_delay = live.image.delay();
        live.image = Op::Busy;
        let agent = Arc::clone(&self.agent);
        let image = spec.image.clone().unwrap_or_default();
        let witness = PullWitness {
            recorder: agent.recorder.clone(),
            pod: Arc::clone(&self.pod),
            container: name.to_owned(),
            init: self.is_init(name),
            image: image.clone(),
        };
        let policy = images::policy(&spec);
        let secrets: Vec<String> = self
            .spec
            .image_pull_secrets
            .iter()
            .flatten()
            .map(|secret| secret.name.clone())
            .collect();
        let namespace = self.record.namespace.clone();
        let container = name.to_owned();
        self.spawn(async move {
            let mut found = Vec::new();
            let mut missing = Vec::new();
            for name in secrets {
                match agent.reader.secret(&namespace, &name).await {
                    Ok(Some(secret)) => found.push(secret),
                    Ok(None) | Err(_) => missing.push(name),
                }
            }
            let (keyring, unusable) = images::keyring(&found);
            missing.extend(unusable);
            if !missing.is_empty() {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    missing.join(", ")
                );
                let reason = "FailedToRetrieveImagePullSecret";
                agent.recorder.pod(&witness.pod, Kind::Warning, reason, message);
            }
            let image = agent.images.ensure(&image, policy, &keyring, &witness).await;
            Signal::Pulled {
                container,
                image: Box::new(image),
            }
        });
    }

    fn start_container(&mut self, name: &str) {
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
                let failure = super::failure(0, 2, 10, "CreateContainerError", error.to_string());
                self.live.container(name).config_error = Some(failure);
                return;
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
        };
        if record.current.is_some() {
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
        if !self.save() {
            self.undo_start(name);
            let message = "the pod's state can't be written".to_owned();
            let failure = super::failure(0, 2, 10, "CreateContainerError", message);
            self.live.container(name).config_error = Some(failure);
            return;
        }
        let start = Start {
            pod: Arc::clone(&self.pod),
            container: spec,
            image,
            volumes,
            sandbox,
            paths: self.paths.clone(),
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
            init: self.is_init(name),
            container: spec,
            target,
            pod_ip: self.pod_ip(),
            stop_signal,
            deadline: receiver,
        }));
        let live = self.live.container(name);
        live.probes = None;
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
            init: role != restart::Role::App,
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
            let status = wait(&shim, &id).await;
            Signal::Ended {
                container,
                id,
                status,
            }
        });
    }

    pub(super) fn wait_for_sandbox(&self, id: &str) {
        let Some(shim) = self.shim.clone() else {
            return;
        };
        let id = id.to_owned();
        self.spawn(async move {
            wait(&shim, &id).await;
            Signal::SandboxEnded { id }
        });
    }

    fn remove_sandbox(&mut self) {
        let Some(sandbox) = self.record.sandbox.clone() else {
            return;
        };
        self.live.remove_delay = self.live.removing.delay();
        self.live.removing = Op::Busy;
        let agent = Arc::clone(&self.agent);
        let (paths, record) = (self.paths.clone(), self.record.clone());
        self.spawn(async move {
            Signal::SandboxRemoved(Box::new(
                sandbox::remove(agent, paths, record, sandbox).await,
            ))
        });
    }

    fn remove_files(&mut self) {
        self.live.clearing = Op::Busy;
        let paths = self.paths.clone();
        self.spawn(async move {
            let cleared = tokio::task::spawn_blocking(move || remove_all(&paths)).await;
            Signal::Cleared(cleared.unwrap_or_else(|error| Err(std::io::Error::other(error))))
        });
    }

    fn delete_from_api(&mut self) {
        self.live.deleting = Op::Busy;
        let client = self.agent.client.clone();
        let address = status::sync::Address {
            namespace: self.record.namespace.clone(),
            name: self.record.name.clone(),
            uid: self.record.uid.clone(),
        };
        let host_ips = self.agent.facts.host_ips.clone();
        let last = status::compute(&status::Inputs {
            pod: &self.pod,
            spec: &self.spec,
            record: &self.record,
            live: &self.live,
            host_ips: &host_ips,
            now: Timestamp::now(),
        });
        self.spawn(async move {
            Signal::Deleted(delete(&client, &address, &last).await.map_err(Box::new))
        });
    }
}

/// The end of a process, asked for again once if the connection breaks.
async fn wait(shim: &Shim, id: &str) -> Option<hpk_shim_client::ExitStatus> {
    match shim.wait(id, "").await {
        Ok(status) => Some(status),
        Err(error) if error.is_gone() => {
            let again = Shim::connect(shim.address()).await.ok()?;
            again.wait(id, "").await.ok()
        }
        Err(error) => {
            debug!(id, error = text::chain(&error), "can't wait for a process");
            None
        }
    }
}

/// The last status, then the object itself.
async fn delete(
    client: &kube::Client,
    address: &status::sync::Address,
    last: &k8s_openapi::api::core::v1::PodStatus,
) -> Result<Existence, kube::Error> {
    let gone = |error: &kube::Error| {
        // Conflict: another pod of that name is there, ours is gone.
        matches!(error, kube::Error::Api(answer) if answer.is_not_found() || answer.is_conflict())
    };
    match status::sync::patch(client, address, None, last).await {
        Err(error) if gone(&error) => return Ok(Existence::WasGone),
        Err(error) => debug!(%error, "can't send a pod's last status"),
        Ok(()) => {}
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), &address.namespace);
    let params = DeleteParams::default()
        .grace_period(0)
        .preconditions(Preconditions {
            uid: Some(address.uid.clone()),
            resource_version: None,
        });
    match api.delete(&address.name, &params).await {
        Ok(_) => Ok(Existence::Deleted),
        Err(error) if gone(&error) => Ok(Existence::WasGone),
        Err(error) => Err(error),
    }
}

fn remove_all(paths: &Paths) -> std::io::Result<()> {
    let mut outcome = Ok(());
    // The state file's folder last: what is left behind by a failure is found again.
    for path in [&paths.logs, &paths.root, &paths.run] {
        if let Err(error) = mounts::remove_tree(path) {
            outcome = Err(error);
            break;
        }
    }
    outcome
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
