//! The static pods among the node's pods: which are to run, and who shows them.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::sync::watch;

use crate::agent::Agent;
use crate::manifests::{full_name, mirror};
use crate::status::sync;

/// Namespace and name.
pub type FullName = (String, String);

/// What is to be done so that the pods of the manifests run, and no others.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// To be started.
    pub start: Vec<Pod>,
    /// Uids of those to be ended.
    pub end: Vec<String>,
}

/// `running`: the static pods that run, by name, with their uids. A pod whose content changed starts when the one before it
/// has ended.
pub fn plan(wanted: &[Pod], running: &HashMap<FullName, String>) -> Plan {
    let mut plan = Plan::default();
    for (name, uid) in running {
        let stays = wanted
            .iter()
            .any(|pod| full_name(pod) == *name && pod.metadata.uid.as_ref() == Some(uid));
        if !stays {
            plan.end.push(uid.clone());
        }
    }
    for pod in wanted {
        if !running.contains_key(&full_name(pod)) {
            plan.start.push(pod.clone());
        }
    }
    plan.end.sort();
    plan
}

/// The mirrors of the static pods that run.
#[derive(Debug)]
pub struct Mirrors {
    agent: Arc<Agent>,
    node: Node,
    seen: HashMap<FullName, (String, watch::Sender<Option<Pod>>)>,
    /// Mirrors as the API server has them.
    known: HashMap<FullName, Pod>,
    /// It is known which static pods there are.
    is_settled: bool,
}

impl Mirrors {
    pub fn new(agent: Arc<Agent>, node: Node) -> Self {
        Self {
            agent,
            node,
            seen: HashMap::new(),
            known: HashMap::new(),
            is_settled: false,
        }
    }

    /// Uids of the static pods that run, by name.
    pub fn running(&self) -> HashMap<FullName, String> {
        let pods = self.seen.iter();
        pods.map(|(name, (uid, _))| (name.clone(), uid.clone()))
            .collect()
    }

    /// Whether the pod is a static one that runs.
    pub fn shows(&self, uid: &str) -> bool {
        self.seen.values().any(|(of, _)| of == uid)
    }

    /// Shows a static pod from now on; its worker gives its statuses to the sender.
    pub fn show(&mut self, pod: &Pod) -> sync::Sender {
        let name = full_name(pod);
        let (sender, status) = sync::Sender::unsent();
        let seen = watch::Sender::new(self.known.get(&name).cloned());
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let work = mirror::keep(
            self.agent.pods_client.clone(),
            self.node.clone(),
            pod.clone(),
            seen.subscribe(),
            status,
        );
        tokio::spawn(work);
        self.seen.insert(name, (uid, seen));
        sender
    }

    /// The static pod has ended: its mirror goes.
    pub fn hide(&mut self, uid: &str) {
        self.seen.retain(|_, (of, _)| of != uid);
    }

    /// All static pods that there are were shown: from now on a mirror that shows none is deleted.
    pub fn settle(&mut self) {
        self.is_settled = true;
        for mirror in unshown(&self.known, &self.running()) {
            self.delete(mirror);
        }
    }

    /// The API server has this mirror pod.
    pub fn see(&mut self, mirror: Pod) {
        let name = full_name(&mirror);
        self.known.insert(name.clone(), mirror.clone());
        if let Some((_, seen)) = self.seen.get(&name) {
            seen.send_replace(Some(mirror));
        } else if self.is_settled {
            self.delete(mirror);
        }
    }

    fn delete(&self, mirror: Pod) {
        let client = self.agent.pods_client.clone();
        tokio::spawn(async move {
            if let Err(error) = mirror::delete(&client, &mirror).await {
                tracing::warn!(%error, "can't delete the mirror of a pod that doesn't run");
            }
        });
    }

    /// The API server has it no more.
    pub fn lose(&mut self, mirror: &Pod) {
        let name = full_name(mirror);
        self.known.remove(&name);
        if let Some((_, seen)) = self.seen.get(&name) {
            seen.send_replace(None);
        }
    }

    /// After a list: those that aren't in it are gone.
    pub fn keep_listed(&mut self, listed: impl Fn(&str) -> bool) {
        let is_gone = |pod: &Pod| !listed(pod.metadata.uid.as_deref().unwrap_or_default());
        let gone: Vec<Pod> = self
            .known
            .values()
            .filter(|pod| is_gone(pod))
            .cloned()
            .collect();
        for pod in gone {
            self.lose(&pod);
        }
    }
}

/// The mirrors of static pods that don't run.
fn unshown(known: &HashMap<FullName, Pod>, running: &HashMap<FullName, String>) -> Vec<Pod> {
    let unshown = known.iter().filter(|(name, _)| !running.contains_key(name));
    unshown.map(|(_, mirror)| mirror.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, uid: &str) -> Pod {
        let meta = json!({"name": name, "namespace": "default", "uid": uid});
        serde_json::from_value(json!({"metadata": meta})).expect("a pod")
    }

    #[test]
    fn a_changed_pod_ends_first_and_starts_when_it_has_ended() {
        let name = |name: &str| ("default".to_owned(), name.to_owned());
        let mut running = HashMap::from([
            (name("same"), "s1".to_owned()),
            (name("changed"), "c1".to_owned()),
            (name("removed"), "r1".to_owned()),
        ]);
        let wanted = [pod("same", "s1"), pod("changed", "c2"), pod("new", "n1")];
        let first = plan(&wanted, &running);
        assert_eq!(first.end, ["c1", "r1"]);
        assert_eq!(first.start, [wanted[2].clone()]);
        running.remove(&name("changed"));
        running.remove(&name("removed"));
        let then = plan(&wanted, &running);
        assert_eq!(then.start, [wanted[1].clone(), wanted[2].clone()]);
    }
    #[test]
    fn only_the_mirrors_of_pods_that_do_not_run_are_left_over() {
        let mirrors = [pod("runs", "m1"), pod("left", "m2")];
        let known = mirrors.map(|mirror| (full_name(&mirror), mirror));
        let name = ("default".to_owned(), "runs".to_owned());
        let running = HashMap::from([(name, "r1".to_owned())]);
        let left = unshown(&HashMap::from(known), &running);
        assert_eq!(left, [pod("left", "m2")]);
    }
}
