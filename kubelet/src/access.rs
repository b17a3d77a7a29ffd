//! The node's pods as others see them: the HTTP server, and admission.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

use crate::agent::Agent;
use crate::node::configz;
use crate::pod::admission;
use crate::pod::paths;
use crate::pod::phase;
use crate::pod::ports::{self, HostPort};
use crate::pod::record::{Instance, Order, PodRecord};
use crate::pod::restart::Role;
use crate::pod::state::State;
use crate::pod::worker::{Handle, Signal};
use crate::quantity::Quantity;
use crate::server::access::{AccessError, ContainerQuery, ContainerRef, PodAccess, PodRef, Run};
use crate::usage::Usage;
use crate::usage::collect::collect;

/// One pod as it stands.
#[derive(Debug, Clone)]
pub struct Entry {
    /// With the status that was sent last.
    pub pod: Arc<Pod>,
    pub state: State,
    pub netns: Option<PathBuf>,
    /// The sandbox is up.
    pub ready: bool,
    containers: BTreeMap<String, (Option<Run>, Option<Run>)>,
    /// Digests of the images of all its containers' last runs, and of its image volumes.
    images: Vec<String>,
    holds_resources: bool,
    worker: Handle,
}

/// Whether what the pod asks for is taken. Once its sandbox is gone its object is deleted, and the scheduler gives its
/// place to another pod, which may be here before we hear of the deletion.
fn holds_resources(state: State, sandbox: bool) -> bool {
    match state {
        State::Pending | State::Finished | State::Rejected | State::Removed => false,
        State::Terminating => sandbox,
        State::Preparing | State::Initializing | State::Running | State::Finishing => true,
    }
}

impl Entry {
    /// `address`: how to reach the pod's shim.
    pub fn new(pod: &Arc<Pod>, record: &PodRecord, address: Option<&str>, worker: Handle) -> Self {
        let run = |instance: &Instance| Run {
            id: instance.id.clone(),
            bundle: instance.bundle.clone(),
            shim_address: address.unwrap_or_default().to_owned(),
            log: instance.log.clone(),
            stdin: None,
            running: instance.is_running() && address.is_some(),
        };
        let containers = record
            .containers
            .iter()
            .map(|(name, container)| {
                let current = container.current.as_ref().map(run);
                let previous = container.previous.as_ref().map(run);
                (name.clone(), (current, previous))
            })
            .collect();
        let runs = record.containers.values();
        let images = runs
            .filter_map(|container| container.current.as_ref()?.image_id.split_once('@'))
            .map(|(_, digest)| digest.to_owned())
            .chain(record.volume_images.iter().cloned())
            .collect();
        let sandbox = record.sandbox.as_ref();
        Self {
            pod: Arc::clone(pod),
            state: record.state,
            netns: sandbox.and_then(|sandbox| sandbox.netns.clone()),
            ready: sandbox.is_some_and(|sandbox| sandbox.ready),
            containers,
            images,
            holds_resources: holds_resources(record.state, sandbox.is_some()),
            worker,
        }
    }

    /// A container of it runs, or may yet be started.
    pub fn is_up(&self) -> bool {
        self.running().next().is_some() || !self.state.is_over()
    }

    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The pod is to end, and fails. One whose worker has ended already needs no telling.
    pub fn end(&self, order: Order) {
        self.worker.send(Signal::End(order));
    }

    /// Its containers may still run, or run again.
    pub fn holds_files(&self) -> bool {
        !matches!(
            self.state,
            State::Finished | State::Rejected | State::Removed
        )
    }

    /// Digests of the images that its containers run, or ran last, and of its image volumes.
    pub fn image_digests(&self) -> impl Iterator<Item = &str> {
        self.images.iter().map(String::as_str)
    }

    fn container(&self, name: &str) -> Option<ContainerRef> {
        let spec = self.pod.spec.as_ref()?;
        let (container, _) = phase::roles(spec).find(|(container, _)| container.name == name)?;
        let (mut current, previous) = self.containers.get(name).cloned().unwrap_or_default();
        if container.stdin == Some(true)
            && let Some(run) = &mut current
        {
            run.stdin = Some(paths::stdin(&run.bundle));
        }
        Some(ContainerRef {
            pod_uid: self.pod.metadata.uid.clone().unwrap_or_default(),
            current,
            previous,
            waiting: self.waiting(name),
            stdin: container.stdin.unwrap_or(false),
            stdin_once: container.stdin_once.unwrap_or(false),
            tty: container.tty.unwrap_or(false),
        })
    }

    /// Containers that run, by name.
    pub fn running(&self) -> impl Iterator<Item = (&str, &Run)> {
        self.containers.iter().filter_map(|(name, (current, _))| {
            let run = current.as_ref().filter(|run| run.running)?;
            Some((name.as_str(), run))
        })
    }

    /// When the present run of a container began.
    pub fn started_at(&self, name: &str) -> Option<Timestamp> {
        let running = self.status(name)?.state.as_ref()?.running.as_ref()?;
        Some(running.started_at.as_ref()?.0)
    }

    fn status(&self, name: &str) -> Option<&ContainerStatus> {
        let roles = [Role::Init, Role::App, Role::Ephemeral];
        let status = self.pod.status.as_ref()?;
        roles.into_iter().find_map(|role| role.status(status, name))
    }

    /// The reason for which the container waits.
    fn waiting(&self, name: &str) -> Option<String> {
        let waiting = self.status(name)?.state.as_ref()?.waiting.as_ref()?;
        waiting.reason.clone()
    }
}

/// All pods of the node, by uid. Written by their workers.
#[derive(Debug, Default)]
pub struct Registry {
    pods: RwLock<HashMap<String, Entry>>,
    /// The first list of pods is complete.
    ready: AtomicBool,
    /// Counts changes, for whoever waits for one.
    changes: watch::Sender<u64>,
}

impl Registry {
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub fn publish(&self, uid: &str, entry: Entry) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.insert(uid.to_owned(), entry);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Tells of each change from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn remove(&self, uid: &str) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.remove(uid);
        self.changes.send_modify(|count| *count += 1);
    }

    pub fn all(&self) -> Vec<Entry> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().cloned().collect()
    }

    /// The pod of that name, and uid if one is asked for; of two of that name the one that lives.
    pub fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<Entry> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let fits = |entry: &&Entry| {
            let meta = &entry.pod.metadata;
            meta.namespace.as_deref() == Some(namespace)
                && meta.name.as_deref() == Some(name)
                && uid.is_none_or(|uid| meta.uid.as_deref() == Some(uid))
        };
        let mut found: Vec<&Entry> = pods.values().filter(fits).collect();
        found.sort_by_key(|entry| entry.state.is_over());
        found.first().map(|entry| (*entry).clone())
    }

    /// What the pods but `uid` that hold resources ask for in sum, and how many they are.
    pub fn used(&self, uid: &str) -> (BTreeMap<String, Quantity>, usize) {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let mut sum: BTreeMap<String, Quantity> = BTreeMap::new();
        let mut count = 0;
        for (of, entry) in pods.iter() {
            if of == uid || !entry.holds_resources {
                continue;
            }
            count += 1;
            for (name, quantity) in entry.pod.spec.iter().flat_map(admission::requests) {
                let known = sum.entry(name).or_default();
                *known = *known + quantity;
            }
        }
        (sum, count)
    }

    /// Ports of the node that the pods but `uid` have.
    pub fn host_ports(&self, uid: &str) -> Vec<HostPort> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let others = pods
            .iter()
            .filter(|(of, entry)| *of != uid && entry.holds_resources);
        others
            .filter_map(|(_, entry)| entry.pod.spec.as_ref())
            .flat_map(ports::host_ports)
            .collect()
    }
}

#[async_trait]
impl PodAccess for Agent {
    async fn pods(&self) -> Vec<Pod> {
        let entries = self.registry.all().into_iter();
        entries.map(|entry| (*entry.pod).clone()).collect()
    }

    async fn usage(&self) -> std::io::Result<Usage> {
        collect(self).await
    }

    async fn probes(&self) -> String {
        self.probes.page()
    }

    async fn configz(&self) -> serde_json::Value {
        configz::configz(&self.config)
    }

    async fn container(&self, query: &ContainerQuery) -> Result<ContainerRef, AccessError> {
        let entry = find(self, &query.namespace, &query.pod, query.uid.as_deref())?;
        entry
            .container(&query.container)
            .ok_or_else(|| AccessError::NoSuchContainer {
                pod: query.pod.clone(),
                container: query.container.clone(),
            })
    }

    async fn pod(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<PodRef, AccessError> {
        let entry = find(self, namespace, name, uid)?;
        Ok(PodRef {
            uid: entry.pod.metadata.uid.clone().unwrap_or_default(),
            netns: entry.netns,
            ready: entry.ready,
        })
    }
}

fn find(
    agent: &Agent,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
) -> Result<Entry, AccessError> {
    if !agent.registry.is_ready() {
        return Err(AccessError::NotReady);
    }
    agent
        .registry
        .find(namespace, name, uid)
        .ok_or_else(|| AccessError::NoSuchPod {
            namespace: namespace.to_owned(),
            pod: name.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_is_about_to_leave_the_api_has_left_its_place() {
        assert!(holds_resources(State::Terminating, true));
        assert!(!holds_resources(State::Terminating, false));
        // One that is being made has a place before it has a sandbox.
        assert!(holds_resources(State::Preparing, false));
    }
}
