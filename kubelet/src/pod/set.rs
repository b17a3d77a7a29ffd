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
use crate::config::Args;
use crate::manifests::{is_mirror, mark_api, read};
use crate::{mounts, text};

/// The pods of the manifests, and what is wrong with the others.
type Manifests = (Vec<Pod>, Vec<read::Error>);

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
    /// The manifests were read once: until then nothing is known of the static pods that records and mirrors tell of.
    has_read: bool,
    /// What was wrong with the others.
    complaints: Vec<String>,
}

/// Runs until the watch ends, which it doesn't.
///
/// # Errors
/// What an earlier kubelet left can't be read: without it, what belongs to living pods would be taken for stale.
pub async fn run(agent: Arc<Agent>, node: Node) -> io::Result<()> {
    let records = load_records(&paths::runs(&agent.config))?;
    // Before any pod is looked at: it might be given what another has.
    for record in records.values().filter(|record| record.holds_devices()) {
        agent.devices.adopt(&record.uid, &record.devices);
    }
    collect_networks(&agent, &records).await;
    let (done, mut ended) = mpsc::unbounded_channel();
    let api: Api<Pod> = Api::all(agent.client.clone());
    let fields = format!("spec.nodeName={}", agent.config.args.node_name);
    let config = watcher::Config::default().fields(&fields);
    let mut events = pin!(watcher(api, config).default_backoff());
    let mirrors = Mirrors::new(Arc::clone(&agent), node);
    let mut manifests = watch_manifests(&agent.config.args);
    let mut set = Set {
        agent,
        workers: HashMap::new(),
        records,
        listed: HashSet::new(),
        done,
        wanted: Vec::new(),
        mirrors,
        has_read: false,
        complaints: Vec::new(),
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
                set.mirrors.hide(&uid);
                set.start_static();
            }
            Some(read) = manifests.recv() => set.take_manifests(read),
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

    fn see(&mut self, mut pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        if is_mirror(&pod) {
            return self.mirrors.see(pod);
        }
        mark_api(&mut pod);
        let pod = Arc::new(pod);
        let known = self.workers.get(&uid);
        if known.is_some_and(|handle| handle.send(Signal::Spec(Arc::clone(&pod)))) {
            return;
        }
        let record = self.records.remove(&uid);
        let (handle, work) = worker::start(Arc::clone(&self.agent), pod, record);
        self.run(uid, handle, work);
    }

    /// Starts what is new in the folder of manifests, and ends what is no longer in it.
    fn take_manifests(&mut self, read: io::Result<Manifests>) {
        let (pods, errors) = match read {
            Ok(read) => read,
            Err(error) => {
                warn!(%error, "can't list the manifests; their pods stay");
                return;
            }
        };
        // Told once, not at every look.
        let errors: Vec<String> = errors.iter().map(|e| text::chain(e)).collect();
        if errors != self.complaints {
            for error in &errors {
                warn!(error, "a manifest gives no pod");
            }
            self.complaints = errors;
        }
        self.wanted = pods;
        for uid in plan(&self.wanted, &self.mirrors.running()).end {
            if let Some(handle) = self.workers.get(&uid) {
                handle.send(Signal::Withdrawn);
            }
        }
        self.start_static();
        if !std::mem::replace(&mut self.has_read, true) {
            self.mirrors.settle();
            if self.agent.registry.is_ready() {
                self.end_orphans();
            }
        }
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
        self.end_orphans();
    }

    /// Ends what the records alone know; static pods not before it is known which there are.
    fn end_orphans(&mut self) {
        for record in take_orphans(&mut self.records, self.has_read) {
            let uid = record.uid.clone();
            info!(
                pod = record.name,
                uid, "is gone from the API; taking down what is left"
            );
            let (handle, work) = worker::start_orphan(Arc::clone(&self.agent), record);
            self.run(uid, handle, work);
        }
    }
}

fn take_orphans(records: &mut HashMap<String, PodRecord>, has_read: bool) -> Vec<PodRecord> {
    let orphans = records.extract_if(|_, record| has_read || !record.is_static);
    orphans.map(|(_, record)| record).collect()
}

/// Reads the folder of manifests again and again. It is in a home on a server, which may hang: only this waits for it.
fn watch_manifests(args: &Args) -> mpsc::Receiver<io::Result<Manifests>> {
    let (sender, receiver) = mpsc::channel(1);
    let (dir, node) = (args.pod_manifest_path.clone(), args.node_name.clone());
    let mut ticker = tokio::time::interval(args.file_check_frequency);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::spawn(async move {
        loop {
            ticker.tick().await;
            let (dir, node) = (dir.clone(), node.clone());
            let read = tokio::task::spawn_blocking(move || match dir {
                Some(dir) => read::folder(&dir, &node),
                None => Ok(Manifests::default()),
            });
            let read = read
                .await
                .unwrap_or_else(|error| Err(io::Error::other(error)));
            if sender.send(read).await.is_err() {
                return;
            }
        }
    });
    receiver
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

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    #[test]
    fn what_is_left_of_a_static_pod_stays_until_the_manifests_were_read() {
        let record = |uid: &str, source: &str| {
            let annotations = json!({crate::manifests::SOURCE: source});
            let pod = json!({"metadata": {"uid": uid, "annotations": annotations}});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            (uid.to_owned(), PodRecord::new(&pod, Timestamp::UNIX_EPOCH))
        };
        let mut records = HashMap::from([record("a", "api"), record("s", "file")]);
        let uids = |orphans: Vec<PodRecord>| -> Vec<String> {
            orphans.into_iter().map(|record| record.uid).collect()
        };
        assert_eq!(uids(take_orphans(&mut records, false)), ["a"]);
        assert_eq!(uids(take_orphans(&mut records, true)), ["s"]);
    }
}
