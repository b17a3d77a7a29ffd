//! The node's pods as others see them: the HTTP server, and admission.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Pod;

use crate::pod::admission;
use crate::pod::record::PodRecord;
use crate::pod::state::State;
use crate::quantity::Quantity;

/// One container as it stands.
#[derive(Debug, Clone)]
pub struct ContainerEntry {
    pub id: String,
    pub bundle: PathBuf,
    pub running: bool,
    pub log: PathBuf,
    /// Of the run before.
    pub previous_log: Option<PathBuf>,
}

/// One pod as it stands.
#[derive(Debug, Clone)]
pub struct Entry {
    /// With the status that was sent last.
    pub pod: Arc<Pod>,
    pub state: State,
    /// How to reach its shim.
    pub address: Option<String>,
    pub sandbox: Option<String>,
    pub containers: BTreeMap<String, ContainerEntry>,
}

impl Entry {
    pub fn new(pod: &Arc<Pod>, record: &PodRecord, address: Option<String>) -> Self {
        let containers = record
            .containers
            .iter()
            .filter_map(|(name, container)| {
                let current = container.current.as_ref()?;
                let previous = container.previous.as_ref();
                let entry = ContainerEntry {
                    id: current.id.clone(),
                    bundle: current.bundle.clone(),
                    running: current.is_running(),
                    log: current.log.clone(),
                    previous_log: previous.map(|instance| instance.log.clone()),
                };
                Some((name.clone(), entry))
            })
            .collect();
        Self {
            pod: Arc::clone(pod),
            state: record.state,
            address,
            sandbox: record.sandbox.as_ref().map(|sandbox| sandbox.id.clone()),
            containers,
        }
    }
}

/// All pods of the node, by uid. Written by their workers.
#[derive(Debug, Default)]
pub struct Registry {
    pods: RwLock<HashMap<String, Entry>>,
}

impl Registry {
    pub fn publish(&self, uid: &str, entry: Entry) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.insert(uid.to_owned(), entry);
    }

    pub fn remove(&self, uid: &str) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.remove(uid);
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
            let holds = !matches!(
                entry.state,
                State::Pending | State::Finished | State::Rejected | State::Removed
            );
            if of == uid || !holds {
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
}
