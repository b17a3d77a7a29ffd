//! Sending a pod's status to the API server: always the latest, one patch at a time.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::conditions::{RESIZE_IN_PROGRESS, RESIZE_PENDING};

/// Hands statuses to the task that sends them; dropping it ends the task.
#[derive(Debug)]
pub struct Sender {
    latest: watch::Sender<Option<PodStatus>>,
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
    pub fn start(client: Client, address: Address, known: Option<PodStatus>) -> Self {
        let (latest, receiver) = watch::channel(None);
        tokio::spawn(send_all(client, address, known, receiver));
        Self { latest }
    }

    /// For a static pod, whose mirror is told instead.
    pub fn unsent() -> (Self, watch::Receiver<Option<PodStatus>>) {
        let (latest, receiver) = watch::channel(None);
        (Self { latest }, receiver)
    }

    pub fn send(&self, status: PodStatus) {
        self.latest.send_replace(Some(status));
    }
}

async fn send_all(
    client: Client,
    address: Address,
    mut known: Option<PodStatus>,
    mut latest: watch::Receiver<Option<PodStatus>>,
) {
    let mut wait = Duration::from_millis(100);
    while latest.changed().await.is_ok() {
        loop {
            let Some(status) = latest.borrow_and_update().clone() else {
                break;
            };
            match patch(&client, &address, known.as_ref(), &status).await {
                Ok(()) => {
                    known = Some(status);
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

/// One patch of the status, if it differs from what the API server has.
pub async fn patch(
    client: &Client,
    address: &Address,
    known: Option<&PodStatus>,
    status: &PodStatus,
) -> Result<(), kube::Error> {
    if known == Some(status) {
        return Ok(());
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), &address.namespace);
    let body = body(&address.uid, known, status).map_err(kube::Error::SerdeError)?;
    api.patch_status(
        &address.name,
        &PatchParams::default(),
        &Patch::Strategic(body),
    )
    .await
    .map(drop)
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
