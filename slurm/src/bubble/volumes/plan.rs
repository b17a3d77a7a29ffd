//! What a claim of ours gets, and which volume of ours goes. Pure.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

/// The name of the class that claims get who name none.
pub const CLASS: &str = "hpk";
/// Who provides its volumes.
pub const PROVISIONER: &str = "hpk.io/home";
/// Where the control plane says who is to provide a claim's volume.
const ASKED: &str = "volume.kubernetes.io/storage-provisioner";
/// Where a volume says who provided it.
const PROVIDED: &str = "pv.kubernetes.io/provisioned-by";

/// Why a claim gets no volume; for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("volumeMode Block can't be had: a volume is a folder of the shared file system")]
    Block,
    #[error("a selector can't be honoured: a volume is made for its claim")]
    Selector,
    #[error("a volume begins empty: dataSource can't be honoured")]
    DataSource,
    #[error("mountOptions {0:?} of the StorageClass can't be honoured: nothing is mounted")]
    MountOptions(Vec<String>),
    #[error("StorageClass {0:?} has parameters: a volume of the home knows none")]
    Parameters(String),
}

/// A volume to be made.
#[derive(Debug, PartialEq)]
pub struct Wanted {
    pub folder: PathBuf,
    pub volume: Value,
}

/// The class itself. Its volumes are there on every node at once, so claims needn't wait for a pod.
pub fn class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": CLASS, "annotations": {
            "storageclass.kubernetes.io/is-default-class": "true",
        }},
        "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate",
    })
}

/// The class of a claim that waits for a volume of ours; none of another's claim, of one that is
/// bound, of one that goes.
pub fn class_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    let spec = claim.spec.as_ref()?;
    let asked = claim.metadata.annotations.as_ref()?.get(ASKED)?;
    let is_bound = spec
        .volume_name
        .as_deref()
        .is_some_and(|name| !name.is_empty());
    let goes = claim.metadata.deletion_timestamp.is_some();
    let class = spec.storage_class_name.as_deref();
    class.filter(|_| asked == PROVISIONER && !is_bound && !goes)
}

/// The volume for a claim, in a folder of its own in `root`.
pub fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    root: &Path,
) -> Result<Wanted, Refusal> {
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(Refusal::Block);
    }
    if spec.selector.is_some() {
        return Err(Refusal::Selector);
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Err(Refusal::DataSource);
    }
    let options = class.mount_options.clone().unwrap_or_default();
    if !options.is_empty() {
        return Err(Refusal::MountOptions(options));
    }
    let class_name = class.metadata.name.clone().unwrap_or_default();
    if class.parameters.iter().flatten().next().is_some() {
        return Err(Refusal::Parameters(class_name));
    }
    let meta = &claim.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (namespace, name) = (text(&meta.namespace), text(&meta.name));
    let uid = text(&meta.uid);
    let folder = root.join(format!("{namespace}_{name}_{uid}"));
    let requests = spec.resources.and_then(|resources| resources.requests);
    let storage = requests.and_then(|mut requests| requests.remove("storage"));
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": format!("pvc-{uid}"), "annotations": {PROVIDED: PROVISIONER}},
        "spec": {
            "capacity": {"storage": storage},
            "accessModes": spec.access_modes,
            "persistentVolumeReclaimPolicy": class.reclaim_policy,
            "storageClassName": class_name,
            "hostPath": {"path": folder, "type": "Directory"},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                         "namespace": namespace, "name": name, "uid": uid},
        },
    });
    Ok(Wanted { folder, volume })
}

/// The folder of a volume of ours whose claim is gone and which isn't to be kept.
pub fn released(volume: &PersistentVolume, root: &Path) -> Option<PathBuf> {
    let annotations = volume.metadata.annotations.as_ref()?;
    let spec = volume.spec.as_ref()?;
    let phase = volume.status.as_ref()?.phase.as_deref();
    let is_due = annotations.get(PROVIDED).map(String::as_str) == Some(PROVISIONER)
        && phase == Some("Released")
        && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete")
        && volume.metadata.deletion_timestamp.is_none();
    let folder = PathBuf::from(&spec.host_path.as_ref()?.path);
    // Whoever may write volumes may write any path into one.
    let is_in_root = folder.parent() == Some(root) && folder.file_name().is_some();
    (is_due && is_in_root).then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let mut spec = spec;
        spec["storageClassName"] = CLASS.into();
        spec["resources"] = json!({"requests": {"storage": "1Gi"}});
        serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "ns", "uid": "u",
                         "annotations": {ASKED: PROVISIONER}},
            "spec": spec}))
        .unwrap()
    }

    fn own_class() -> StorageClass {
        serde_json::from_value(class()).unwrap()
    }

    #[test]
    fn only_claims_that_wait_for_us_get_a_volume() {
        assert_eq!(class_of(&claim(json!({}))), Some(CLASS));
        assert_eq!(class_of(&claim(json!({"volumeName": "v"}))), None);
        let mut other = claim(json!({}));
        other.metadata.annotations = None;
        assert_eq!(class_of(&other), None);
    }

    #[test]
    fn a_volume_is_bound_to_its_claim_and_has_a_folder_of_its_own() {
        let wanted = volume(&claim(json!({})), &own_class(), Path::new("/v")).unwrap();
        assert_eq!(wanted.folder, Path::new("/v/ns_c_u"));
        let made: PersistentVolume = serde_json::from_value(wanted.volume).unwrap();
        let spec = made.spec.unwrap();
        assert_eq!(spec.claim_ref.unwrap().uid.as_deref(), Some("u"));
        assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
        assert_eq!(spec.host_path.unwrap().path, "/v/ns_c_u");
    }

    #[test]
    fn what_a_folder_cannot_be_is_refused() {
        let refused = |spec| volume(&claim(spec), &own_class(), Path::new("/v")).unwrap_err();
        assert_eq!(refused(json!({"volumeMode": "Block"})), Refusal::Block);
        assert_eq!(refused(json!({"selector": {}})), Refusal::Selector);
    }

    #[test]
    fn only_a_released_volume_of_ours_in_our_folder_is_removed() {
        let with = |phase: &str, path: &str| -> PersistentVolume {
            serde_json::from_value(json!({
                "metadata": {"name": "p", "annotations": {PROVIDED: PROVISIONER}},
                "spec": {"persistentVolumeReclaimPolicy": "Delete", "hostPath": {"path": path}},
                "status": {"phase": phase}}))
            .unwrap()
        };
        let root = Path::new("/v");
        assert_eq!(
            released(&with("Released", "/v/x"), root),
            Some("/v/x".into())
        );
        assert_eq!(released(&with("Bound", "/v/x"), root), None);
        for path in ["/v", "/", "/etc", "/v/x/y", "/v/.."] {
            assert_eq!(released(&with("Released", path), root), None, "{path}");
        }
    }
}
