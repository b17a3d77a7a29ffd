//! All pods of the node: the watch on the API server, a worker for each, and what was found on disk.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::paths;
use super::record::PodRecord;
use super::statics::{Mirrors, plan};
use super::worker::{self, Handle, Signal};
use crate::agent::Agent;
use crate::manifests::{is_mirror, read};
use crate::{mounts, text};

/// The node's pods.
#[derive(Debug)]
struct Set {
    agent: Arc<Agent>,
    workers: HashMap<String, Handle>,
    /// Found on disk at the start, not yet taken over.
    records: HashMap<String, PodRecord>,
    /// Uids of a relist so far.
    listed: HashSet<String>,
    done: mpsc::UnboundedSender<String>,
    /// The pods of the manifests, as last read.
    wanted: Vec<Pod>,
    mirrors: Mirrors,
    /// What was wrong with the others.
    complaints: Vec<String>,
}

/// Runs until the watch ends, which it doesn't.
///
/// # Errors
/// What an earlier kubelet left can't be read: without it, what belongs to living pods would be taken for stale.
pub async fn run(agent: Arc<Agent>, node: Node) -> io::Result<()> {
    let records = load_records(&paths::runs(&agent.config))?;
    collect_networks(&agent, &records).await;
    let (done, mut ended) = mpsc::unbounded_channel();
    let api: Api<Pod> = Api::all(agent.client.clone());
    let fields = format!("spec.nodeName={}", agent.config.args.node_name);
    let config = watcher::Config::default().fields(&fields);
    let mut events = pin!(watcher(api, config).default_backoff());
    let mirrors = Mirrors::new(Arc::clone(&agent), node);
    let check = agent.config.args.file_check_frequency;
    let mut set = Set {
        agent,
        workers: HashMap::new(),
        records,
        listed: HashSet::new(),
        done,
        wanted: Vec::new(),
        mirrors,
        complaints: Vec::new(),
    };
    // Before the first list: what the records have of static pods isn't in it.
    set.read_manifests();
    let mut manifests = tokio::time::interval(check);
    manifests.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => set.accept(event),
                Some(Err(error)) => warn!(error = text::chain(&error), "the watch on pods failed; again"),
                None => return Ok(()),
            },
            Some(uid) = ended.recv() => {
                set.workers.remove(&uid);
                set.mirrors.hide(&uid);
                set.start_static();
            }
            _ = manifests.tick() => set.read_manifests(),
        }
    }
}

impl Set {
    fn accept(&mut self, event: Event<Pod>) {
        match event {
            Event::Apply(pod) => self.see(pod),
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                // A mirror's uid, too: whose mirror isn't listed has none.
                self.listed.extend(pod.metadata.uid.clone());
                self.see(pod);
            }
            Event::InitDone => {
                let listed = &self.listed;
                self.mirrors.keep_listed(|uid| listed.contains(uid));
                self.forget_unlisted();
                self.agent.registry.set_ready();
            }
            Event::Delete(pod) if is_mirror(&pod) => self.mirrors.lose(&pod),
            Event::Delete(pod) => {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                if let Some(handle) = self.workers.get(uid) {
                    handle.send(Signal::Gone);
                }
            }
        }
    }

    fn see(&mut self, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        if is_mirror(&pod) {
            return self.mirrors.see(pod);
        }
        let pod = Arc::new(pod);
        let known = self.workers.get(&uid);
        if known.is_some_and(|handle| handle.send(Signal::Spec(Arc::clone(&pod)))) {
            return;
        }
        let record = self.records.remove(&uid);
        let (handle, work) = worker::start(Arc::clone(&self.agent), pod, record);
        self.run(uid, handle, work);
    }

    /// Reads the folder of manifests, and ends what is no longer in it.
    fn read_manifests(&mut self) {
        let args = &self.agent.config.args;
        let Some(dir) = &args.pod_manifest_path else {
            return;
        };
        match read::folder(dir, &args.node_name) {
            Ok((pods, errors)) => {
                // Told once, not at every look.
                let errors: Vec<String> = errors.iter().map(|e| text::chain(e)).collect();
                if errors != self.complaints {
                    for error in &errors {
                        warn!(error, "a manifest gives no pod");
                    }
                    self.complaints = errors;
                }
                self.wanted = pods;
            }
            Err(error) => {
                warn!(%error, dir = %dir.display(), "can't list the manifests; their pods stay");
                return;
            }
        }
        for uid in plan(&self.wanted, &self.mirrors.running()).end {
            if let Some(handle) = self.workers.get(&uid) {
                handle.send(Signal::Withdrawn);
            }
        }
        self.start_static();
    }

    fn start_static(&mut self) {
        for pod in plan(&self.wanted, &self.mirrors.running()).start {
            let Some(uid) = pod.metadata.uid.clone() else {
                continue;
            };
            let status = self.mirrors.show(&pod);
            let record = self.records.remove(&uid);
            let agent = Arc::clone(&self.agent);
            let (handle, work) = worker::start_static(agent, Arc::new(pod), record, status);
            self.run(uid, handle, work);
        }
    }

    fn run<F>(&mut self, uid: String, handle: Handle, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.workers.insert(uid.clone(), handle);
        let done = self.done.clone();
        tokio::spawn(async move {
            work.await;
            // The set lives as long as the process.
            let _ = done.send(uid);
        });
    }

    /// After a list: whoever isn't in it is gone, here or since before the kubelet started.
    fn forget_unlisted(&mut self) {
        for (uid, handle) in &self.workers {
            if !self.listed.contains(uid) && !self.mirrors.shows(uid) {
                handle.send(Signal::Gone);
            }
        }
        for (uid, record) in std::mem::take(&mut self.records) {
            info!(
                pod = record.name,
                uid, "is gone from the API; taking down what is left"
            );
            let (handle, work) = worker::start_orphan(Arc::clone(&self.agent), record);
            self.run(uid, handle, work);
        }
    }
}

/// The pods an earlier kubelet left in `runs`. A folder without a record can't be taken over: what is mounted in it goes,
/// and it with it. One whose record can't be understood is kept for people to look at.
fn load_records(runs: &Path) -> io::Result<HashMap<String, PodRecord>> {
    let mut records = HashMap::new();
    for entry in std::fs::read_dir(runs)? {
        let dir = entry?.path();
        match PodRecord::load(&dir) {
            Ok(Some(record)) => {
                records.insert(record.uid.clone(), record);
            }
            Ok(None) => {
                if let Err(error) = mounts::remove_tree(&dir) {
                    warn!(%error, dir = %dir.display(), "can't remove a pod's empty folder");
                }
            }
            Err(error) => warn!(error = text::chain(&error), "a pod's state is lost"),
        }
    }
    info!(pods = records.len(), "found on this node");
    Ok(records)
}

/// CNI GC: attachments of sandboxes that no record knows are released.
async fn collect_networks(agent: &Agent, records: &HashMap<String, PodRecord>) {
    let valid: Vec<String> = records
        .values()
        .filter_map(|record| Some(record.sandbox.as_ref()?.id.clone()))
        .collect();
    if let Err(error) = agent.network.collect(&valid).await {
        warn!(
            error = text::chain(&error),
            "can't collect stale network attachments"
        );
    }
}
