//! Making the node known to the API server.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tracing::{info, warn};

use super::object;
use super::observe::observe;
use crate::agent::Agent;
use crate::text;

/// Creates the node, or sets the labels and status of the one that is there. Tries until it works:
/// the API server may start after us.
pub async fn register(agent: &Agent) -> Node {
    let mut wait = Duration::from_millis(100);
    loop {
        match try_register(agent).await {
            Ok(node) => {
                info!(node = agent.config.args.node_name, "registered");
                return node;
            }
            Err(error) => {
                warn!(
                    error = text::chain(&error),
                    "can't register the node; again"
                );
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(2));
            }
        }
    }
}

async fn try_register(agent: &Agent) -> Result<Node, kube::Error> {
    let observed = observe(agent);
    let config = &agent.config;
    let api: Api<Node> = Api::all(agent.client.clone());
    let name = &config.args.node_name;
    let wanted = object::node(config, &observed, Timestamp::now());
    match api.create(&PostParams::default(), &wanted).await {
        Ok(node) => return Ok(node),
        Err(kube::Error::Api(answer)) if answer.is_already_exists() => {}
        Err(error) => return Err(error),
    }
    let labels = json!({"metadata": {"labels": object::labels(config, &observed)}});
    let node = api
        .patch(name, &PatchParams::default(), &Patch::Strategic(labels))
        .await?;
    let old = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let status = object::status(config, &observed, &old, Timestamp::now());
    patch_status(agent, &status).await
}

/// Sets the node's status.
pub async fn patch_status(
    agent: &Agent,
    status: &k8s_openapi::api::core::v1::NodeStatus,
) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(agent.client.clone());
    let patch = json!({"status": status});
    api.patch_status(
        &agent.config.args.node_name,
        &PatchParams::default(),
        &Patch::Strategic(patch),
    )
    .await
}
