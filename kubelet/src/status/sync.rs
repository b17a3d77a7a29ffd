//! Sending a pod's status to the API server: always the latest, one patch at a time.
//!
//! Others write it, too. Their conditions are never sent: our copies may be older than they are. Where a node seems to be
//! gone, the node lifecycle controller says of its pods that they aren't Ready: a condition of ours that the watch tells
//! otherwise, and newer than our last patch, is set right again, and so is a phase that isn't the pod's end.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::Phase;
use super::conditions::{self, RESIZE_IN_PROGRESS, RESIZE_PENDING};

/// Hands statuses to the task that sends them; dropping it ends the task.
#[derive(Debug)]
pub struct Sender {
    latest: watch::Sender<Option<PodStatus>>,
    seen: watch::Sender<Option<Known>>,
}

/// What the API server has of a pod's status, as far as we know.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Of the whole pod.
    version: u64,
    status: Option<PodStatus>,
}

impl Known {
    /// As `pod` came from the API server.
    pub fn of(pod: &Pod) -> Self {
        Self {
            version: version(pod),
            status: pod.status.as_ref().map(without_others),
        }
    }

    /// Takes over what the watch told, if another wrote it over what we had said: true if that is to be set right. (The
    /// pod's end isn't: the worker has heard of it, and will say more.) What is older than our last patch, or is that
    /// patch, is no news.
    pub fn hear(&mut self, theirs: Self) -> bool {
        let is_the_end = theirs.status.as_ref().and_then(Phase::end_in).is_some();
        let is_over = theirs.version > self.version
            && self
                .status
                .as_ref()
                .zip(theirs.status.as_ref())
                .is_some_and(|(ours, theirs)| is_over(ours, theirs));
        if is_over {
            *self = theirs;
        }
        is_over && !is_the_end
    }
}

/// Resource versions of one kind are numbers that grow: KEP-5504.
fn version(pod: &Pod) -> u64 {
    let version = pod.metadata.resource_version.as_deref();
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

/// Whether another has changed the phase or a condition that is the kubelet's.
fn is_over(ours: &PodStatus, theirs: &PodStatus) -> bool {
    let status = |of: &PodStatus, kind: &str| {
        let mut all = of.conditions.iter().flatten();
        all.find(|condition| condition.type_ == kind)
            .map(|condition| condition.status.clone())
    };
    ours.phase != theirs.phase
        || conditions::OURS
            .iter()
            .any(|kind| status(ours, kind).is_some_and(|said| status(theirs, kind) != Some(said)))
}

/// Whose status it is.
#[derive(Debug, Clone)]
pub struct Address {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Sender {
    /// `known`: what the API server has now.
    pub fn start(client: Client, address: Address, known: Known) -> Self {
        let ((latest, to_send), (seen, heard)) = (watch::channel(None), watch::channel(None));
        tokio::spawn(send_all(client, address, known, to_send, heard));
        Self { latest, seen }
    }

    /// For a static pod, whose mirror is told instead.
    pub fn unsent() -> (Self, watch::Receiver<Option<PodStatus>>) {
        let (latest, to_send) = watch::channel(None);
        let seen = watch::Sender::new(None);
        (Self { latest, seen }, to_send)
    }

    pub fn send(&self, status: PodStatus) {
        self.latest.send_replace(Some(status));
    }

    /// What the watch tells of the pod.
    pub fn saw(&self, pod: &Pod) {
        self.seen.send_replace(Some(Known::of(pod)));
    }
}

async fn send_all(
    client: Client,
    address: Address,
    mut known: Known,
    mut latest: watch::Receiver<Option<PodStatus>>,
    mut seen: watch::Receiver<Option<Known>>,
) {
    let mut wait = Duration::from_millis(100);
    loop {
        // Both end with the sender.
        let is_news = tokio::select! {
            changed = latest.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
            Ok(()) = seen.changed() => {
                let theirs = seen.borrow_and_update().clone();
                theirs.is_some_and(|theirs| known.hear(theirs))
            }
        };
        if !is_news {
            continue;
        }
        loop {
            let Some(status) = latest.borrow_and_update().clone() else {
                break;
            };
            match patch(&client, &address, &mut known, &status).await {
                Ok(()) => {
                    wait = Duration::from_millis(100);
                    break;
                }
                Err(kube::Error::Api(answer)) if answer.is_not_found() => return,
                Err(kube::Error::Api(answer)) if answer.is_invalid() => {
                    warn!(
                        pod = address.name,
                        message = answer.message,
                        "the API server refuses a status"
                    );
                    break;
                }
                Err(error) => {
                    debug!(pod = address.name, %error, "can't send a status; again");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        changed = latest.changed() => if changed.is_err() { return },
                    }
                    wait = (wait * 2).min(Duration::from_secs(5));
                }
            }
        }
    }
}

/// The status as we send it.
fn without_others(status: &PodStatus) -> PodStatus {
    let mut status = status.clone();
    if let Some(all) = &mut status.conditions {
        let sent = [conditions::OURS, conditions::SHARED].concat();
        all.retain(|condition| sent.contains(&condition.type_.as_str()));
    }
    status
}

/// One patch of the status, if it differs from what the API server has.
pub async fn patch(
    client: &Client,
    address: &Address,
    known: &mut Known,
    status: &PodStatus,
) -> Result<(), kube::Error> {
    let status = without_others(status);
    if known.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), &address.namespace);
    let body =
        body(&address.uid, known.status.as_ref(), &status).map_err(kube::Error::SerdeError)?;
    let patch = Patch::Strategic(body);
    let now = api
        .patch_status(&address.name, &PatchParams::default(), &patch)
        .await?;
    *known = Known {
        version: version(&now),
        status: Some(status),
    };
    Ok(())
}

/// A strategic merge patch: fields that are gone are null; lists that would be merged by key are
/// replaced where one of ours may have vanished. The uid keeps it from another pod of that name.
fn body(uid: &str, known: Option<&PodStatus>, status: &PodStatus) -> serde_json::Result<Value> {
    let mut fields = object(serde_json::to_value(status)?);
    if let Some(known) = known {
        for key in object(serde_json::to_value(known)?).keys() {
            if !fields.contains_key(key) && OURS.contains(&key.as_str()) {
                fields.insert(key.clone(), Value::Null);
            }
        }
    }
    for list in ["podIPs", "hostIPs"] {
        if let Some(Value::Array(items)) = fields.get_mut(list) {
            items.push(json!({"$patch": "replace"}));
        }
    }
    if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            // What is left out of a patch stays: a condition that holds would keep the reason why it didn't.
            for key in ["reason", "message"] {
                condition.entry(key).or_insert(Value::Null);
            }
        }
        let over = PASSING.iter().filter(|kind| {
            let has = |status: &PodStatus| {
                let mut all = status.conditions.iter().flatten();
                all.any(|condition| condition.type_ == **kind)
            };
            !has(status) && known.is_none_or(has)
        });
        conditions.extend(over.map(|kind| json!({"type": kind, "$patch": "delete"})));
    }
    Ok(json!({"metadata": {"uid": uid}, "status": fields}))
}

/// Conditions that are there only as long as they hold.
const PASSING: [&str; 2] = [RESIZE_PENDING, RESIZE_IN_PROGRESS];

/// What the kubelet may take back; all else is set by others, and kept.
const OURS: &[&str] = &[
    "podIP",
    "podIPs",
    "reason",
    "message",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
];

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_wrote_over_ours_is_heard_and_an_echo_is_not() {
        let at = |version: &str, phase: &str, ready: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"resourceVersion": version}, "status": {
                "phase": phase, "conditions": [{"type": "Ready", "status": ready}, {"type": "mine", "status": ready}]}}))
            .expect("pod")
        };
        let of = |version, ready| Known::of(&at(version, "Running", ready));
        let mut known = of("10", "True");
        assert!(!known.hear(of("9", "False")), "older than our patch");
        assert!(!known.hear(of("11", "True")), "the same");
        assert!(known.hear(of("100", "False")));
        assert_eq!(known.version, 100);
        assert!(!known.hear(of("101", "False")), "heard before");
        assert!(
            !known.hear(Known::of(&at("102", "Failed", "True"))),
            "its end stays"
        );
        assert_eq!(known.version, 102);
    }

    #[test]
    fn conditions_of_others_are_not_sent() {
        let status: PodStatus = serde_json::from_value(json!({"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "gate", "status": "True"}, {"type": "DisruptionTarget", "status": "True"}]}))
        .expect("status");
        let kinds: Vec<String> = without_others(&status)
            .conditions
            .into_iter()
            .flatten()
            .map(|condition| condition.type_)
            .collect();
        assert_eq!(kinds, ["Ready", "DisruptionTarget"]);
    }

    #[test]
    fn a_condition_that_no_longer_holds_is_deleted() {
        let with = |kinds: &[&str]| -> PodStatus {
            let all: Vec<Value> = kinds
                .iter()
                .map(|k| json!({"type": k, "status": "True"}))
                .collect();
            serde_json::from_value(json!({"conditions": all})).expect("status")
        };
        let known = with(&["Ready", RESIZE_IN_PROGRESS]);
        let body = body("u1", Some(&known), &with(&["Ready"])).expect("body");
        let conditions = body["status"]["conditions"].as_array().expect("a list");
        assert_eq!(conditions.len(), 2);
        assert_eq!(
            conditions[1],
            json!({"type": RESIZE_IN_PROGRESS, "$patch": "delete"})
        );
    }

    #[test]
    fn a_condition_that_holds_loses_the_reason_why_it_did_not() {
        let with = |condition: Value| -> PodStatus {
            serde_json::from_value(json!({"conditions": [condition]})).expect("status")
        };
        let waiting = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"});
        let ready = with(json!({"type": "Ready", "status": "True"}));
        let body = body("u1", Some(&with(waiting)), &ready).expect("body");
        let condition = &body["status"]["conditions"][0];
        for key in ["reason", "message"] {
            assert_eq!(condition.get(key), Some(&Value::Null), "{key}");
        }
    }

    #[test]
    fn a_reason_that_is_gone_is_taken_back() {
        let known = PodStatus {
            reason: Some("X".to_owned()),
            qos_class: Some("BestEffort".to_owned()),
            ..PodStatus::default()
        };
        let body = body("u1", Some(&known), &PodStatus::default()).expect("body");
        assert_eq!(body["status"]["reason"], Value::Null);
        assert!(
            body["status"]
                .as_object()
                .expect("object")
                .contains_key("reason")
        );
        assert!(
            !body["status"]
                .as_object()
                .expect("object")
                .contains_key("qosClass")
        );
        assert_eq!(body["metadata"]["uid"], "u1");
    }
}
