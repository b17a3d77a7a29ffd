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
const API: &str = "api";
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

/// Whether it comes from a manifest of this node.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE).is_some_and(|source| source != API)
}

/// The API server's pods can't say that they come from elsewhere.
pub fn mark_api(pod: &mut Pod) {
    let annotations = pod.metadata.annotations.as_mut();
    if let Some(source) = annotations.and_then(|all| all.get_mut(SOURCE)) {
        *source = API.to_owned();
    }
}

/// What a static pod and its mirror have in common: namespace and name.
pub fn full_name(pod: &Pod) -> (String, String) {
    let meta = &pod.metadata;
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_of_the_api_servers_is_no_static_one_whatever_it_says() {
        let annotated = |name: &str| -> Pod {
            let annotations = json!({name: "file"});
            serde_json::from_value(json!({"metadata": {"annotations": annotations}}))
                .expect("a pod")
        };
        let mut pod = annotated(SOURCE);
        assert!(is_static(&pod));
        mark_api(&mut pod);
        assert!(!is_static(&pod));
        let mut other = annotated("other");
        mark_api(&mut other);
        assert_eq!(other, annotated("other"));
    }
}
