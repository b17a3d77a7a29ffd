//! Static pods: those of a folder of manifests, which run without an API server and are shown there by a mirror pod.
//! Source: Kubernetes, "Create static Pods"; pkg/kubelet/config, pkg/kubelet/pod/mirror_client.go.
//!
//! - `read`: files → pods
//! - `mirror`: the pod that the API server is shown
//! - here: what both of them name

pub mod mirror;
pub mod read;

use k8s_openapi::api::core::v1::Pod;

/// Where a pod comes from: `file`, `api`.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// The uid that a static pod has on its node.
pub const HASH: &str = "kubernetes.io/config.hash";
/// Marks a mirror pod; the same as [`HASH`] on the pod that it shows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// An annotation's value.
pub fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let all = pod.metadata.annotations.as_ref()?;
    all.get(name).map(String::as_str)
}

/// Whether it only shows a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR).is_some()
}

/// What a static pod and its mirror have in common: namespace and name.
pub fn full_name(pod: &Pod) -> (String, String) {
    let meta = &pod.metadata;
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}
