//! All pods of the node: the watch on the API server, a worker for each, and what was found on disk.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::paths;
use super::record::PodRecord;
use super::worker::{self, Handle, Signal};
use crate::agent::Agent;
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
}

/// Runs until the watch ends, which it doesn't.
///
/// # Errors
/// What an earlier kubelet left can't be read: without it, what belongs to living pods would be taken for stale.
pub async fn run(agent: Arc<Agent>) -> io::Result<()> {
    let records = load_records(&paths::runs(&agent.config))?;
    collect_networks(&agent, &records).await;
    let (done, mut ended) = mpsc::unbounded_channel();
    let api: Api<Pod> = Api::all(agent.client.clone());
    let fields = format!("spec.nodeName={}", agent.config.args.node_name);
    let config = watcher::Config::default().fields(&fields);
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut set = Set {
        agent,
        workers: HashMap::new(),
        records,
        listed: HashSet::new(),
        done,
    };
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => set.accept(event),
                Some(Err(error)) => warn!(error = text::chain(&error), "the watch on pods failed; again"),
                None => return Ok(()),
            },
            Some(uid) = ended.recv() => {
                set.workers.remove(&uid);
            }
        }
    }
}

impl Set {
    fn accept(&mut self, event: Event<Pod>) {
        match event {
            Event::Apply(pod) => self.see(pod),
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.extend(pod.metadata.uid.clone());
                self.see(pod);
            }
            Event::InitDone => {
                self.forget_unlisted();
                self.agent.registry.set_ready();
            }
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
        let pod = Arc::new(pod);
        let known = self.workers.get(&uid);
        if known.is_some_and(|handle| handle.send(Signal::Spec(Arc::clone(&pod)))) {
            return;
        }
        let record = self.records.remove(&uid);
        let (handle, work) = worker::start(Arc::clone(&self.agent), pod, record);
        self.run(uid, handle, work);
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
            if !self.listed.contains(uid) {
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
