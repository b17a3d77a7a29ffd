//! The bubble's own use of the API server: is it ready, are the nodes, and cluster DNS's objects.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::spec::BubbleSpec;
use crate::settings::BUBBLE_ROOT;

/// A client with the administrator's certificate.
pub async fn client() -> Result<Client> {
    let path = format!("{BUBBLE_ROOT}/kubeconfig");
    let kubeconfig = Kubeconfig::read_from(&path).with_context(|| format!("reading {path}"))?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("using {path}"))?;
    // The API server is on this network, whatever proxies the host has.
    config.proxy_url = None;
    Client::try_from(config).context("making a client of the API server")
}

/// One look at `/readyz`.
pub async fn is_ready(client: &Client) -> Result<()> {
    let request = http::Request::get("/readyz")
        .body(Vec::new())
        .context("asking for /readyz")?;
    let text = client
        .request_text(request)
        .await
        .context("asking for /readyz")?;
    ensure!(text == "ok", "the API server is not ready: {text}");
    Ok(())
}

/// The cluster's nodes that are not Ready, or not there.
pub async fn unready_nodes(client: &Client, wanted: &[String]) -> Result<Vec<String>> {
    let nodes = Api::<Node>::all(client.clone())
        .list(&ListParams::default())
        .await
        .context("listing the nodes")?;
    let ready: Vec<_> = nodes
        .items
        .iter()
        .filter(|node| is_node_ready(node))
        .filter_map(|node| node.metadata.name.clone())
        .collect();
    Ok(wanted
        .iter()
        .filter(|name| !ready.contains(name))
        .cloned()
        .collect())
}

fn is_node_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether pods are admitted: each needs its namespace's service account.
pub async fn admits_pods(client: &Client) -> Result<()> {
    Api::<ServiceAccount>::namespaced(client.clone(), "default")
        .get("default")
        .await
        .map(drop)
        .context("asking for the service account of the namespace default")
}

/// What CoreDNS needs: its Service with the node's address behind it, and leave to watch.
pub async fn apply_dns(client: &Client, spec: &BubbleSpec) -> Result<()> {
    let [service, slice, role, binding] = dns_objects(spec);
    let in_system = "kube-system";
    apply(&Api::<ClusterRole>::all(client.clone()), role).await?;
    apply(&Api::<ClusterRoleBinding>::all(client.clone()), binding).await?;
    apply(
        &Api::<Service>::namespaced(client.clone(), in_system),
        service,
    )
    .await?;
    apply(
        &Api::<EndpointSlice>::namespaced(client.clone(), in_system),
        slice,
    )
    .await
}

async fn apply<K>(api: &Api<K>, object: Value) -> Result<()>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let name = object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    api.patch(
        &name,
        &PatchParams::apply("hpk-bubble").force(),
        &Patch::Apply(object),
    )
    .await
    .with_context(|| format!("applying {name}"))?;
    Ok(())
}

fn dns_objects(spec: &BubbleSpec) -> [Value; 4] {
    let ports = |target: bool| -> Vec<Value> {
        [("dns", "UDP"), ("dns-tcp", "TCP")]
            .iter()
            .map(|(name, protocol)| {
                let mut port = json!({"name": name, "port": 53, "protocol": protocol});
                if target {
                    port["targetPort"] = 53.into();
                }
                port
            })
            .collect()
    };
    [
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {
                "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS",
            }},
            "spec": {"clusterIP": spec.network.dns().to_string(), "ports": ports(true)},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "kube-dns-hpk", "namespace": "kube-system", "labels": {
                "kubernetes.io/service-name": "kube-dns",
                "endpointslice.kubernetes.io/managed-by": "hpk-bubble",
            }},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [spec.node_ip().to_string()],
                           "conditions": {"ready": true}, "nodeName": spec.node}],
            "ports": ports(false),
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "system:coredns"},
            "rules": [
                {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"],
                 "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
                 "verbs": ["list", "watch"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "system:coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                        "name": "system:coredns"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User",
                          "name": "system:coredns"}],
        }),
    ]
}
