//! The mirror pod of a static pod: made where it is missing, made anew where it was deleted or shows another, told the
//! status, and gone with the static pod.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use tokio::sync::watch;
use tracing::warn;

use super::{HASH, MIRROR, annotation, full_name};
use crate::status::sync::{self, Address, Known};
use crate::text;

/// Between two tries at what the API server refused.
const AGAIN: Duration = Duration::from_secs(5);

/// Without any news the mirror is looked at again.
const REST: Duration = Duration::from_secs(3600);

/// What the mirror needs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Create,
    /// It is to go, or shows another pod.
    Delete {
        uid: String,
    },
    /// It is as it should be: only its status follows.
    Tell {
        uid: String,
    },
}

fn next(pod: &Pod, mirror: Option<&Pod>) -> Step {
    let Some(mirror) = mirror else {
        return Step::Create;
    };
    let uid = mirror.metadata.uid.clone().unwrap_or_default();
    let shows_it = annotation(mirror, MIRROR) == annotation(pod, HASH);
    match shows_it && mirror.metadata.deletion_timestamp.is_none() {
        true => Step::Tell { uid },
        false => Step::Delete { uid },
    }
}

/// The pod as the API server is to have it: the node vouches for it.
fn mirror_of(pod: &Pod, node: &Node) -> Pod {
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    if let Some(hash) = annotations.get(HASH).cloned() {
        annotations.insert(MIRROR.to_owned(), hash);
    }
    Pod {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node.metadata.name.clone().unwrap_or_default(),
                uid: node.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: pod.spec.clone(),
        status: None,
    }
}

/// Keeps the mirror until `seen` is closed, and then deletes it. `seen`: the mirror as the API server has it.
pub async fn keep(
    client: Client,
    node: Node,
    pod: Pod,
    mut seen: watch::Receiver<Option<Pod>>,
    mut status: watch::Receiver<Option<PodStatus>>,
) {
    let mut told: Option<(String, Known)> = None;
    loop {
        let mirror = seen.borrow_and_update().clone();
        let latest = status.borrow_and_update().clone();
        if let (Some((_, known)), Some(mirror)) = (&mut told, &mirror) {
            known.hear(Known::of(mirror));
        }
        let step = next(&pod, mirror.as_ref());
        let done = apply(&client, &node, &pod, &step, latest, &mut told).await;
        let retry = match done {
            Ok(pause) => pause,
            Err(error) => {
                let (namespace, name) = full_name(&pod);
                let error = text::chain(&error);
                warn!(
                    namespace,
                    name, error, "can't keep a static pod's mirror; again"
                );
                AGAIN
            }
        };
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { break },
            // Its worker has ended: the mirror goes when the set says so.
            Ok(()) = status.changed() => {}
            () = tokio::time::sleep(retry) => {}
        }
    }
    let mirror = seen.borrow().clone();
    if let Some(mirror) = mirror
        && let Err(error) = delete(&client, &mirror).await
    {
        warn!(
            error = text::chain(&error),
            "can't delete a static pod's mirror"
        );
    }
}

/// How long to wait for news after it.
async fn apply(
    client: &Client,
    node: &Node,
    pod: &Pod,
    step: &Step,
    latest: Option<PodStatus>,
    told: &mut Option<(String, Known)>,
) -> Result<Duration, kube::Error> {
    let (namespace, name) = full_name(pod);
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    match step {
        Step::Create => {
            let mirror = mirror_of(pod, node);
            after_create(api.create(&PostParams::default(), &mirror).await)
        }
        Step::Delete { uid } => delete_uid(&api, &name, uid).await.map(|()| REST),
        Step::Tell { uid } => {
            let Some(latest) = latest else {
                return Ok(REST);
            };
            // Of another mirror before it nothing is known.
            let (_, known) = match told.take_if(|(of, _)| of == uid) {
                Some(same) => told.insert(same),
                None => told.insert((uid.clone(), Known::default())),
            };
            let address = Address {
                namespace,
                name,
                uid: uid.clone(),
            };
            sync::patch(client, &address, known, &latest).await?;
            Ok(REST)
        }
    }
}

fn after_create(answer: Result<Pod, kube::Error>) -> Result<Duration, kube::Error> {
    match answer {
        Ok(_) => Ok(REST),
        // The watch will tell of a mirror; of another's pod of that name nobody does, nor of its end.
        Err(kube::Error::Api(answer)) if answer.is_already_exists() => Ok(AGAIN),
        Err(error) => Err(error),
    }
}

/// Deletes a mirror pod at once: nothing of it runs.
///
/// # Errors
/// If the API server refuses it; one that is gone is deleted.
pub async fn delete(client: &Client, mirror: &Pod) -> Result<(), kube::Error> {
    let (namespace, name) = full_name(mirror);
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let uid = mirror.metadata.uid.as_deref().unwrap_or_default();
    delete_uid(&api, &name, uid).await
}

async fn delete_uid(api: &Api<Pod>, name: &str, uid: &str) -> Result<(), kube::Error> {
    let params = DeleteParams::default()
        .grace_period(0)
        .preconditions(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        });
    match api.delete(name, &params).await {
        // Conflict: another of that name is there by now.
        Err(kube::Error::Api(answer)) if answer.is_not_found() || answer.is_conflict() => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(annotations: serde_json::Value, deleted: bool) -> Pod {
        let deletion = deleted.then_some("2026-01-01T00:00:00Z");
        let meta = json!({"name": "w-n1", "namespace": "default", "uid": "m1",
            "annotations": annotations, "deletionTimestamp": deletion});
        serde_json::from_value(json!({"metadata": meta, "spec": {"containers": []}}))
            .expect("a pod")
    }

    #[test]
    fn a_mirror_that_is_missing_deleted_or_of_another_content_is_made_anew() {
        let own = pod(json!({HASH: "h1"}), false);
        let delete = Step::Delete {
            uid: "m1".to_owned(),
        };
        assert_eq!(next(&own, None), Step::Create);
        let mirror = |hash: &str, deleted| pod(json!({MIRROR: hash}), deleted);
        assert_eq!(next(&own, Some(&mirror("h1", true))), delete);
        assert_eq!(next(&own, Some(&mirror("h0", false))), delete);
        let tell = Step::Tell {
            uid: "m1".to_owned(),
        };
        assert_eq!(next(&own, Some(&mirror("h1", false))), tell);
    }

    #[test]
    fn a_name_that_another_pod_has_is_tried_again_soon() {
        let taken = kube::core::Status::failure("there", "AlreadyExists").with_code(409);
        let answer = after_create(Err(kube::Error::Api(Box::new(taken))));
        assert_eq!(answer.ok(), Some(AGAIN));
        assert_eq!(after_create(Ok(Pod::default())).ok(), Some(REST));
    }

    #[test]
    fn a_mirror_names_its_node_and_what_it_shows() {
        let mut node = Node::default();
        node.metadata.name = Some("n1".to_owned());
        node.metadata.uid = Some("u".to_owned());
        let mirror = mirror_of(&pod(json!({HASH: "h1"}), false), &node);
        assert_eq!(annotation(&mirror, MIRROR), Some("h1"));
        assert_eq!(mirror.metadata.uid, None);
        let owner = &mirror.metadata.owner_references.expect("owners")[0];
        assert_eq!(
            (owner.kind.as_str(), owner.controller),
            ("Node", Some(true))
        );
    }
}
