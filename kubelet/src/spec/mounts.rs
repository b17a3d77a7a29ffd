//! What a container has mounted: the kernel's file systems, the pod's files, its volumes.

use std::path::{Path, PathBuf};

use hpk_images::container_defaults::{DEV, KERNEL, KERNEL_READ_ONLY, mount};
use k8s_openapi::api::core::v1::{Container, VolumeMount};
use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder};
use thiserror::Error;

use crate::env::expand::expand;
use crate::volumes::apply::Mounted;
use crate::volumes::source::SubPath;

#[derive(Debug, Error)]
pub enum Error {
    #[error("container {container} mounts volume {volume:?}, which the pod doesn't have")]
    NoVolume { container: String, volume: String },
    #[error(transparent)]
    Oci(#[from] OciSpecError),
}

/// A bind of something on the node.
pub fn bind(from: &Path, target: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    let mut all = vec!["rbind".to_owned()];
    all.extend(options.iter().map(|o| (*o).to_owned()));
    MountBuilder::default()
        .typ("bind")
        .source(from)
        .destination(target)
        .options(all)
        .build()
}

/// What the sandbox's only program needs: little.
pub fn sandbox() -> Result<Vec<Mount>, OciSpecError> {
    Ok(vec![
        mount("proc", "proc", "/proc", KERNEL)?,
        mount("tmpfs", "tmpfs", "/dev", DEV)?,
        mount("sysfs", "sysfs", "/sys", KERNEL_READ_ONLY)?,
    ])
}

/// Files that every container of the pod is given.
#[derive(Debug, Clone)]
pub struct PodFiles {
    pub hosts: PathBuf,
    pub hostname: PathBuf,
    pub resolv_conf: PathBuf,
    /// The pod's common /dev/shm.
    pub shm: PathBuf,
    /// The container's own; its path inside is `terminationMessagePath`.
    pub termination_message: PathBuf,
    /// Where parts of volumes are bound for the runtime.
    pub sub_paths: PathBuf,
}

/// A container's binds, and what must be bound on the node before they can be made.
#[derive(Debug, Default)]
pub struct Binds {
    pub mounts: Vec<Mount>,
    pub sub_paths: Vec<SubPath>,
}

/// Binds of the pod's files and of the container's volumes. A volume mounted on one of those paths
/// goes before the file.
pub fn of_container(
    container: &Container,
    files: &PodFiles,
    volumes: &Mounted,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Binds, Error> {
    let wanted = container.volume_mounts.as_deref().unwrap_or_default();
    let (mut mounts, mut sub_paths) = (Vec::new(), Vec::new());
    for (index, volume) in wanted.iter().enumerate() {
        let target = files
            .sub_paths
            .join(&volume.name)
            .join(&container.name)
            .join(index.to_string());
        let (bind, sub_path) = volume_bind(container, volume, volumes, target, lookup)?;
        mounts.push(bind);
        sub_paths.extend(sub_path);
    }
    let message = container
        .termination_message_path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or("/dev/termination-log");
    let own = [
        (&files.hosts, "/etc/hosts"),
        (&files.hostname, "/etc/hostname"),
        (&files.resolv_conf, "/etc/resolv.conf"),
        (&files.shm, "/dev/shm"),
        (&files.termination_message, message),
    ];
    for (from, target) in own {
        if !wanted
            .iter()
            .any(|volume| same_path(&volume.mount_path, target))
        {
            mounts.push(bind(from, target, &["rprivate", "rw"])?);
        }
    }
    Ok(Binds { mounts, sub_paths })
}

fn same_path(one: &str, other: &str) -> bool {
    Path::new(one)
        .components()
        .eq(Path::new(other).components())
}

fn volume_bind(
    container: &Container,
    volume: &VolumeMount,
    volumes: &Mounted,
    target: PathBuf,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<(Mount, Option<SubPath>), Error> {
    let root = volumes.get(&volume.name).ok_or_else(|| Error::NoVolume {
        container: container.name.clone(),
        volume: volume.name.clone(),
    })?;
    let sub_path = match (&volume.sub_path_expr, &volume.sub_path) {
        (Some(expression), _) if !expression.is_empty() => expand(expression, lookup),
        (_, Some(path)) => path.clone(),
        _ => String::new(),
    };
    let sub_path = (!sub_path.is_empty()).then(|| SubPath {
        name: volume.name.clone(),
        volume: root.path.clone(),
        sub_path,
        target,
    });
    let from = sub_path.as_ref().map_or(&root.path, |part| &part.target);
    let propagation = match volume.mount_propagation.as_deref() {
        Some("HostToContainer") => "rslave",
        Some("Bidirectional") => "rshared",
        _ => "rprivate",
    };
    let access = if root.read_only || volume.read_only == Some(true) {
        "ro"
    } else {
        "rw"
    };
    // A mount path without a leading slash is taken from the root, as the stock kubelet does.
    let target = if volume.mount_path.starts_with('/') {
        volume.mount_path.clone()
    } else {
        format!("/{}", volume.mount_path)
    };
    Ok((bind(from, &target, &[propagation, access])?, sub_path))
}

/// Shallow targets first, so that none hides one mounted before it; otherwise as given.
pub fn in_order(mut mounts: Vec<Mount>) -> Vec<Mount> {
    mounts.sort_by_key(|mount| mount.destination().components().count());
    mounts
}
