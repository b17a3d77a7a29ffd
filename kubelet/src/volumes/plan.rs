//! The pod's volumes as a closed set of kinds.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeSource, EmptyDirVolumeSource, HostPathVolumeSource,
    ImageVolumeSource, PersistentVolumeClaimVolumeSource, PodSpec, ProjectedVolumeSource,
    SecretVolumeSource, Volume,
};

/// A volume that this kubelet can provide.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    EmptyDir(EmptyDirVolumeSource),
    HostPath(HostPathVolumeSource),
    ConfigMap(ConfigMapVolumeSource),
    Secret(SecretVolumeSource),
    DownwardApi(DownwardAPIVolumeSource),
    Projected(ProjectedVolumeSource),
    Image(ImageVolumeSource),
    Claim(PersistentVolumeClaimVolumeSource),
    /// A claim that the control plane made for this volume of this pod.
    Ephemeral,
    /// A kind that can't be had here, by its field name in the API.
    Unsupported(&'static str),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    pub name: String,
    pub kind: Kind,
}

impl Planned {
    /// Whether the content comes from the API and may change while the pod runs.
    pub fn is_payload(&self) -> bool {
        matches!(
            self.kind,
            Kind::ConfigMap(_) | Kind::Secret(_) | Kind::DownwardApi(_) | Kind::Projected(_)
        )
    }
}

/// The pod's volumes in order.
pub fn plan(spec: &PodSpec) -> Vec<Planned> {
    spec.volumes
        .iter()
        .flatten()
        .map(|volume| Planned {
            name: volume.name.clone(),
            kind: kind(volume),
        })
        .collect()
}

fn kind(volume: &Volume) -> Kind {
    if let Some(source) = &volume.empty_dir {
        return Kind::EmptyDir(source.clone());
    }
    if let Some(source) = &volume.host_path {
        return Kind::HostPath(source.clone());
    }
    if let Some(source) = &volume.config_map {
        return Kind::ConfigMap(source.clone());
    }
    if let Some(source) = &volume.secret {
        return Kind::Secret(source.clone());
    }
    if let Some(source) = &volume.downward_api {
        return Kind::DownwardApi(source.clone());
    }
    if let Some(source) = &volume.projected {
        return Kind::Projected(source.clone());
    }
    if let Some(source) = &volume.image {
        return Kind::Image(source.clone());
    }
    if let Some(source) = &volume.persistent_volume_claim {
        return Kind::Claim(source.clone());
    }
    if volume.ephemeral.is_some() {
        return Kind::Ephemeral;
    }
    Kind::Unsupported(unsupported_name(volume))
}

fn unsupported_name(volume: &Volume) -> &'static str {
    let set = [
        (volume.csi.is_some(), "csi"),
        (volume.nfs.is_some(), "nfs"),
        (volume.iscsi.is_some(), "iscsi"),
        (volume.rbd.is_some(), "rbd"),
        (volume.cephfs.is_some(), "cephfs"),
        (volume.glusterfs.is_some(), "glusterfs"),
        (volume.fc.is_some(), "fc"),
        (volume.flex_volume.is_some(), "flexVolume"),
        (volume.git_repo.is_some(), "gitRepo"),
        (
            volume.aws_elastic_block_store.is_some(),
            "awsElasticBlockStore",
        ),
        (volume.azure_disk.is_some(), "azureDisk"),
        (volume.azure_file.is_some(), "azureFile"),
        (volume.gce_persistent_disk.is_some(), "gcePersistentDisk"),
        (volume.vsphere_volume.is_some(), "vsphereVolume"),
    ];
    set.into_iter()
        .find(|(is_set, _)| *is_set)
        .map_or("unknown", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_kind_that_is_not_known_is_named() {
        let spec: PodSpec = serde_json::from_value(json!({"containers": [], "volumes": [
            {"name": "a", "emptyDir": {}},
            {"name": "b", "nfs": {"server": "s", "path": "/p"}}]}))
        .expect("spec");
        let planned = plan(&spec);
        assert!(matches!(planned[0].kind, Kind::EmptyDir(_)));
        assert_eq!(planned[1].kind, Kind::Unsupported("nfs"));
    }
}
