//! Doing the steps of a plan: each starts work beside the worker and returns at once.

use std::sync::Arc;

use hpk_shim_client::Shim;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tokio::task::JoinHandle;
use tracing::debug;

use super::Worker;
use super::events::PullWitness;
use super::signal::{Existence, Signal};
use crate::agent::Agent;
use crate::events::Kind;
use crate::images::Witness;
use crate::pod::allocation;
use crate::pod::live::Op;
use crate::pod::paths::Paths;
use crate::pod::phase::Step;
use crate::pod::sandbox;
use crate::pod::state::State;
use crate::{mounts, status, text, volumes};

impl Worker {
    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Move(state) => {
                if state == State::Terminating {
                    self.live.removing = Op::Idle;
                }
                if state == State::Preparing && self.record.state == State::Pending {
                    if !self.take_devices() {
                        return;
                    }
                    self.record.allocation = allocation::of(&self.spec);
                }
                if matches!(state, State::Finishing | State::Terminating) {
                    self.live.unwanted.cancel();
                    self.live.ending_since = Some(Timestamp::now());
                }
                self.go(state);
            }
            Step::Fail(verdict) => {
                // Who gave an order has told of it.
                if self.record.order.is_none() {
                    self.tell(Kind::Warning, &verdict.reason, verdict.message.clone());
                }
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
            Step::Allocate => self.allocate(),
            Step::HoldResize(verdict) => self.hold_resize(verdict),
            Step::DropResize => self.record.resize.held = None,
            Step::ResizeContainer { container } => self.resize_container(&container),
            Step::CompleteResize => self.complete_resize(),
            Step::ReplaceContainer { container, grace } => {
                if let Some(current) = &mut self.record.container(&container).current {
                    current.replaced = true;
                }
                let message = format!("Container {container} definition changed");
                self.stop_container(&container, grace, Some(message));
            }
            Step::RemoveSandbox => self.remove_sandbox(),
            Step::RemoveVolumes => self.remove_volumes(),
            Step::RemoveFiles => self.remove_files(),
            Step::DeleteFromApi => self.delete_from_api(),
        }
    }

    pub(super) fn spawn<F>(&self, work: F)
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
        self.live.volumes.begin();
        let (agent, pod) = (Arc::clone(&self.agent), Arc::clone(&self.pod));
        let dirs = self.paths.volumes();
        let facts = agent.facts_for(&[]);
        self.spawn(async move {
            let witness = witness_of(&agent, &pod);
            let sources = agent.volume_sources(&witness);
            let outcome = volumes::mount_all(&sources, &pod, &facts, &dirs).await;
            Signal::Mounted(Box::new(outcome))
        });
    }

    pub(super) fn refresh_volumes(&mut self) {
        let last = self.live.refreshing.as_ref();
        if last.is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (agent, pod) = (Arc::clone(&self.agent), Arc::clone(&self.pod));
        let dirs = self.paths.volumes();
        let facts = agent.facts_for(&[]);
        self.live.refreshing = Some(tokio::spawn(async move {
            let witness = witness_of(&agent, &pod);
            let sources = agent.volume_sources(&witness);
            if let Err(error) = volumes::refresh(&sources, &pod, &facts, &dirs).await {
                debug!(error = text::chain(&error), "can't refresh a volume");
            }
        }));
    }

    fn create_sandbox(&mut self) {
        self.live.sandbox.begin();
        let id = match crate::ids::fresh() {
            Ok(id) => id,
            Err(error) => return self.no_sandbox(error.to_string()),
        };
        self.record.sandbox_attempt += 1;
        let intent = sandbox::intend(&self.agent, &self.pod, &self.paths, id);
        self.record.sandbox = Some(intent.clone());
        if !self.save() {
            self.record.sandbox = None;
            return self.no_sandbox("the pod's state can't be written".to_owned());
        }
        let (agent, pod) = (Arc::clone(&self.agent), Arc::clone(&self.pod));
        let (paths, unwanted) = (self.paths.clone(), self.live.unwanted.clone());
        self.spawn(async move {
            let made = sandbox::create(agent, pod, paths, intent, unwanted).await;
            Signal::SandboxMade(Box::new(made))
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

    pub(super) fn no_sandbox(&mut self, message: String) {
        let reason = "FailedCreatePodSandBox";
        self.live.sandbox.fail(1, 15, reason, message);
    }

    fn remove_sandbox(&mut self) {
        let Some(sandbox) = self.record.sandbox.clone() else {
            return;
        };
        self.live.removing.begin();
        let agent = Arc::clone(&self.agent);
        let (paths, record) = (self.paths.clone(), self.record.clone());
        self.spawn(async move {
            Signal::SandboxRemoved(Box::new(
                sandbox::remove(agent, paths, record, sandbox).await,
            ))
        });
    }

    fn remove_files(&mut self) {
        self.live.clearing.begin();
        let paths = self.paths.clone();
        let refreshing = self.live.refreshing.take();
        self.spawn(async move {
            end(refreshing).await;
            let cleared = tokio::task::spawn_blocking(move || remove_all(&paths)).await;
            Signal::Cleared(cleared.unwrap_or_else(|error| Err(std::io::Error::other(error))))
        });
    }

    fn remove_volumes(&mut self) {
        self.live.emptying.begin();
        self.live.volumes = Op::Idle;
        let dirs = self.paths.volumes();
        let refreshing = self.live.refreshing.take();
        self.spawn(async move {
            end(refreshing).await;
            let remove =
                move || mounts::remove_tree(&dirs.disk).and(mounts::remove_tree(&dirs.memory));
            let emptied = tokio::task::spawn_blocking(remove).await;
            Signal::Emptied(emptied.unwrap_or_else(|error| Err(std::io::Error::other(error))))
        });
    }

    fn delete_from_api(&mut self) {
        self.live.deleting.begin();
        let client = self.agent.pods_client.clone();
        let address = super::address(&self.record);
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

/// Ends a task that would write what is about to be removed, such as a Secret that the API server tells late.
async fn end(task: Option<JoinHandle<()>>) {
    if let Some(task) = task {
        task.abort();
        // Ended either way; only that it has counts.
        let _ = task.await;
    }
}

/// Who tells of the images pulled for the pod's volumes.
fn witness_of(agent: &Arc<Agent>, pod: &Arc<Pod>) -> impl Fn(&str) -> Box<dyn Witness> + Sync {
    let (recorder, pod) = (agent.recorder.clone(), Arc::clone(pod));
    move |image| {
        Box::new(PullWitness {
            recorder: recorder.clone(),
            pod: Arc::clone(&pod),
            container: None,
            image: image.to_owned(),
        })
    }
}

/// The end of a process, asked for again once if the connection breaks; and the connection that told.
pub(super) async fn wait(shim: &Shim, id: &str) -> Option<(hpk_shim_client::ExitStatus, Shim)> {
    match shim.wait(id, "").await {
        Ok(status) => Some((status, shim.clone())),
        Err(error) if error.is_gone() => {
            let again = Shim::connect(shim.address()).await.ok()?;
            let status = again.wait(id, "").await.ok()?;
            Some((status, again))
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
    match status::sync::patch(client, address, &mut status::sync::Known::default(), last).await {
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
    // The state file's folder last: what is left behind by a failure is found again.
    for path in [&paths.logs, &paths.root, &paths.run] {
        mounts::remove_tree(path)?;
    }
    Ok(())
}
