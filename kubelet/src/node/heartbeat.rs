//! The node's lease, renewed every 10 s, and its status, told when it changes and every 5 min.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tracing::warn;

use super::observe::observe;
use super::{object, register};
use crate::agent::Agent;
use crate::text;

/// Between renewals of the lease, and looks at the node.
const RENEW: Duration = Duration::from_secs(10);
/// Seconds without renewal after which the node counts as lost.
const LEASE_SECONDS: i32 = 40;
/// The status is told at least this often.
const REPORT: SignedDuration = SignedDuration::from_secs(300);
const NAMESPACE: &str = "kube-node-lease";

/// Runs for ever.
pub async fn run(agent: Arc<Agent>, node: Node) {
    let mut conditions = conditions(&node);
    let mut reported = Timestamp::now();
    let mut ticker = tokio::time::interval(RENEW);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut standing = agent.standing.subscribe();
    let mut listed = node.status.as_ref().and_then(|s| s.images.clone());
    loop {
        tokio::select! {
            _ = ticker.tick() => {}
            // The agent, which holds the sender, lives as long as this.
            _ = standing.changed() => {}
        }
        if let Err(error) = renew(&agent, &node).await {
            warn!(error = text::chain(&error), "can't renew the node's lease");
        }
        let now = Timestamp::now();
        let observed = observe(&agent);
        let status = object::status(&agent.config, &observed, &conditions, now);
        let changed = differs(
            &conditions,
            status.conditions.as_deref().unwrap_or_default(),
        );
        let changed = changed || status.images != listed;
        if changed || now.duration_since(reported) >= REPORT {
            match register::patch_status(&agent, &status).await {
                Ok(node) => {
                    conditions = self::conditions(&node);
                    listed = status.images;
                    reported = now;
                }
                Err(kube::Error::Api(answer)) if answer.is_not_found() => {
                    // Deleted by hand: a node that runs is there.
                    conditions = self::conditions(&register::register(&agent).await);
                }
                Err(error) => warn!(error = text::chain(&error), "can't tell the node's status"),
            }
        }
    }
}

fn conditions(node: &Node) -> Vec<NodeCondition> {
    let status = node.status.as_ref();
    status
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default()
}

/// Whether any condition says something else than before.
fn differs(old: &[NodeCondition], new: &[NodeCondition]) -> bool {
    new.iter().any(|condition| {
        !old.iter().any(|known| {
            known.type_ == condition.type_
                && known.status == condition.status
                && known.message == condition.message
        })
    })
}

async fn renew(agent: &Agent, node: &Node) -> Result<(), kube::Error> {
    let name = &agent.config.args.node_name;
    let api: Api<Lease> = Api::namespaced(agent.client.clone(), NAMESPACE);
    let now = MicroTime(Timestamp::now());
    let patch = json!({"spec": {
        "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}});
    match api
        .patch(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Err(kube::Error::Api(answer)) if answer.is_not_found() => {}
        other => return other.map(drop),
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.clone(),
                uid: node.metadata.uid.clone().unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}
