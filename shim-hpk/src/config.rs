//! The bundle's `config.json`, and who shares a shim with whom.

use std::path::Path;

use oci_spec::runtime::Spec;

use crate::error::Error;

/// The annotation that names the pod's sandbox, by CRI implementation: containerd's, CRI-O's.
const SANDBOX_ID: [&str; 2] = [
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
];

/// The annotation that tells a sandbox from a container.
const CONTAINER_TYPE: [&str; 2] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
];

/// Reads the bundle's runtime spec.
pub fn load(bundle: &Path) -> Result<Spec, Error> {
    let path = bundle.join("config.json");
    let bytes = std::fs::read(&path).map_err(|source| Error::File {
        action: "read",
        path: path.clone(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Spec { path, source })
}

/// The id containers share a shim under: the pod's sandbox, or the container's own.
pub fn grouping(spec: &Spec, id: &str) -> String {
    SANDBOX_ID
        .iter()
        .find_map(|name| annotation(spec, name))
        .filter(|sandbox| !sandbox.is_empty())
        .unwrap_or(id)
        .to_owned()
}

/// Whether it is a pod's sandbox.
pub fn is_sandbox(spec: &Spec) -> bool {
    CONTAINER_TYPE
        .iter()
        .any(|name| annotation(spec, name) == Some("sandbox"))
}

/// One of the spec's annotations.
pub fn annotation<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    let annotations = spec.annotations().as_ref()?;
    annotations.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_a_pod_group_under_its_sandbox() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.1.0","annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#,
        )
        .unwrap();
        assert_eq!(grouping(&spec, "app"), "pod");
    }

    #[test]
    fn a_container_of_no_pod_has_a_shim_of_its_own() {
        let spec: Spec = serde_json::from_str(r#"{"ociVersion":"1.1.0"}"#).unwrap();
        assert_eq!(grouping(&spec, "app"), "app");
    }
}
