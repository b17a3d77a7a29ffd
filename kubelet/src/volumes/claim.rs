//! A claim's volume: what it is bound to, and where that is on this node. Pure but for `ensure`.

use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
};
use thiserror::Error;

use super::host_path;

#[derive(Debug, Error)]
pub enum Error {
    #[error("persistentvolumeclaim {0:?} not found")]
    NoClaim(String),
    #[error("persistentvolumeclaim {0:?} is not bound")]
    Unbound(String),
    #[error("persistentvolumeclaim {claim:?} was not made for pod {pod:?}")]
    NotOurs { claim: String, pod: String },
    #[error("persistentvolume {0:?} not found")]
    NoVolume(String),
    #[error("persistentvolume {volume:?} is bound to another claim than {claim:?}")]
    OfAnother { volume: String, claim: String },
    #[error("persistentvolume {0:?} has volumeMode Block, which hpk-kubelet doesn't provide")]
    Block(String),
    #[error(
        "persistentvolume {0:?} is neither hostPath nor local: hpk-kubelet provides no other kind"
    )]
    Kind(String),
    #[error("path {path} of a local volume is no directory of this node")]
    NotHere { path: PathBuf },
    #[error(transparent)]
    HostPath(#[from] host_path::Error),
}

/// Where a persistent volume is.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    HostPath(HostPathVolumeSource),
    Local(PathBuf),
}

/// A claim that is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    pub claim: String,
    pub uid: Option<String>,
    pub volume: String,
}

/// The claim `name`, if it is bound. `owner`: the pod that it must have been made for.
pub fn bound_to(
    name: &str,
    claim: Option<PersistentVolumeClaim>,
    owner: Option<&Pod>,
) -> Result<Bound, Error> {
    let claim = claim.ok_or_else(|| Error::NoClaim(name.to_owned()))?;
    if let Some(pod) = owner {
        let references = claim.metadata.owner_references.iter().flatten();
        let mut uids = references.map(|reference| Some(&reference.uid));
        if !uids.any(|uid| uid == pod.metadata.uid.as_ref()) {
            return Err(Error::NotOurs {
                claim: name.to_owned(),
                pod: pod.metadata.name.clone().unwrap_or_default(),
            });
        }
    }
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    let volume = claim.spec.and_then(|spec| spec.volume_name);
    match (phase, volume) {
        (Some("Bound"), Some(volume)) if !volume.is_empty() => Ok(Bound {
            claim: name.to_owned(),
            uid: claim.metadata.uid,
            volume,
        }),
        _ => Err(Error::Unbound(name.to_owned())),
    }
}

/// Where the volume is that the claim is bound to.
pub fn place(volume: Option<PersistentVolume>, claim: &Bound) -> Result<Place, Error> {
    let name = &claim.volume;
    let missing = || Error::NoVolume(name.to_owned());
    let spec = volume.and_then(|volume| volume.spec).ok_or_else(missing)?;
    let bound = spec.claim_ref.as_ref().and_then(|of| of.uid.as_ref());
    if bound != claim.uid.as_ref() {
        return Err(Error::OfAnother {
            volume: name.to_owned(),
            claim: claim.claim.clone(),
        });
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(Error::Block(name.to_owned()));
    }
    match spec {
        PersistentVolumeSpec {
            host_path: Some(source),
            ..
        } => Ok(Place::HostPath(source)),
        PersistentVolumeSpec {
            local: Some(source),
            ..
        } => Ok(Place::Local(source.path.into())),
        _ => Err(Error::Kind(name.to_owned())),
    }
}

impl Place {
    /// The folder or file, checked and where it is to be made, made.
    pub fn ensure(self) -> Result<PathBuf, Error> {
        match self {
            Place::HostPath(source) => {
                let path = PathBuf::from(source.path);
                host_path::ensure(&path, source.type_.as_deref().unwrap_or_default())?;
                Ok(path)
            }
            Place::Local(path) => match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => Ok(path),
                _ => Err(Error::NotHere { path }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(phase: &str) -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": {"name": "c", "uid": "u1", "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p1"}]},
            "spec": {"volumeName": "v"}, "status": {"phase": phase}}))
        .expect("claim")
    }

    fn volume(uid: &str, source: serde_json::Value) -> Option<PersistentVolume> {
        let mut spec = json!({"claimRef": {"uid": uid}});
        spec.as_object_mut()
            .expect("object")
            .extend(source.as_object().expect("object").clone());
        let volume = json!({"metadata": {"name": "v"}, "spec": spec});
        Some(serde_json::from_value(volume).expect("volume"))
    }

    #[test]
    fn only_a_bound_claim_leads_to_a_volume() {
        let bound = bound_to("c", Some(claim("Bound")), None).expect("bound");
        assert_eq!(bound.volume, "v");
        let pending = bound_to("c", Some(claim("Pending")), None);
        assert!(matches!(pending, Err(Error::Unbound(_))));
        assert!(matches!(bound_to("c", None, None), Err(Error::NoClaim(_))));
    }

    #[test]
    fn a_claim_of_another_pods_ephemeral_volume_is_refused() {
        let pod = |uid: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "uid": uid}})).expect("pod")
        };
        assert!(bound_to("c", Some(claim("Bound")), Some(&pod("p1"))).is_ok());
        let other = bound_to("c", Some(claim("Bound")), Some(&pod("p2")));
        assert!(matches!(other, Err(Error::NotOurs { .. })));
    }

    #[test]
    fn a_volume_must_be_bound_to_the_claim_and_of_a_kind_that_is_on_the_node() {
        let bound = bound_to("c", Some(claim("Bound")), None).expect("bound");
        let local = json!({"local": {"path": "/data"}});
        assert_eq!(
            place(volume("u1", local.clone()), &bound).expect("place"),
            Place::Local("/data".into())
        );
        let other = place(volume("u2", local), &bound);
        assert!(matches!(other, Err(Error::OfAnother { .. })));
        let csi = json!({"csi": {"driver": "d", "volumeHandle": "h"}});
        let error = place(volume("u1", csi), &bound).expect_err("refused");
        assert!(
            error
                .to_string()
                .contains("\"v\" is neither hostPath nor local")
        );
    }
}
