//! From the spec to what is to be done: pure, so tests compare values.
//!
//! - [`container`] – a whole container. [`exec`] – a further process in one.
//! - `mounts` – the spec's mounts and devices. `process` – its `process`. `rootfs` – the mounts of
//!   the Create request. `engine` – Apptainer's command line and configuration. `seccomp` – a filter
//!   for the kernel. [`hooks`]. [`ids`] – which users there are. `sysctl`. `refuse` – what isn't supported. `cgroup_view` – /sys/fs/cgroup.

mod cgroup_view;
pub mod engine;
pub mod hooks;
pub mod ids;
mod mounts;
mod process;
mod refuse;
pub mod rootfs;
pub mod seccomp;
mod sysctl;

use std::path::{Path, PathBuf};

use hpk_pause::wire;
use hpk_userns::Mapped;
use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

pub use mounts::MOUNT_OPTIONS;
pub use process::capability_name;

use crate::{config, error::Error};

/// A path whose mounts are opened for the container, in the order of their descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    /// With what is mounted below it.
    pub recursive: bool,
    /// The field that asks for it, for errors.
    pub field: String,
    /// A device that may be missing: then its `tree` is unset, and mknod is tried.
    pub optional: bool,
}

/// The container's PID namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    /// Its own; its program is PID 1.
    New,
    /// The shim's.
    Host,
    /// Another container's.
    Join(PathBuf),
}

/// All that creating one container takes.
#[derive(Debug, PartialEq)]
pub struct Container {
    /// Apptainer's sandbox directory.
    pub rootfs: PathBuf,
    /// Mounted there, in a mount namespace of the container's own.
    pub rootfs_mounts: Vec<rootfs::Mount>,
    /// Namespaces made before Apptainer runs.
    pub unshare: CloneFlags,
    /// Namespaces joined before Apptainer runs.
    pub join: Vec<(PathBuf, CloneFlags)>,
    pub pid_namespace: PidNamespace,
    /// Descriptors of the sources start at [`first_source`] in the configuration.
    pub sources: Vec<Source>,
    pub setup: wire::Setup,
    pub process: wire::Process,
    pub cgroup: hpk_cgroup::Request,
    pub hooks: hooks::Hooks,
    /// Whether its processes run as root where their users aren't mapped.
    pub squash: bool,
    /// Asked for, and not done: for the log.
    pub warnings: Vec<String>,
}

/// Index of the first source's descriptor: after the configuration itself and the streams.
pub fn first_source(terminal: bool) -> wire::Fd {
    if terminal { 1 } else { 4 }
}

/// Plans a container.
///
/// # Errors
/// [`Error::Unsupported`] or [`Error::Invalid`] with the field's name.
pub fn container(
    spec: &Spec,
    id: &str,
    bundle: &Path,
    rootfs_mounts: Vec<rootfs::Mount>,
    terminal: bool,
    mapped: &Mapped,
) -> Result<Container, Error> {
    refuse::spec(spec)?;
    let linux = spec.linux().clone().unwrap_or_default();
    let root = spec.root().as_ref();
    let rootfs = if rootfs_mounts.is_empty() {
        bundle.join(root.map_or(Path::new("rootfs"), |r| r.path().as_path()))
    } else {
        bundle.join("rootfs")
    };
    let namespaces = namespaces(spec)?;
    let mut planned = mounts::plan(spec, bundle, first_source(terminal))?;
    let mut process = match spec.process() {
        Some(process) => process::plan(process, terminal)?,
        None => {
            return Err(Error::Invalid {
                field: "process".into(),
                why: "it is missing".into(),
            });
        }
    };
    if let Some(profile) = linux.seccomp() {
        process.seccomp = seccomp::compile(profile)?;
    }
    let uts_is_ours = namespaces.unshare.contains(CloneFlags::CLONE_NEWUTS);
    let uts_is_a_pods = namespaces
        .join
        .iter()
        .any(|(_, flag)| *flag == CloneFlags::CLONE_NEWUTS);
    for (field, name) in [
        ("hostname", spec.hostname()),
        ("domainname", spec.domainname()),
    ] {
        let given = name.as_deref().filter(|name| !name.is_empty());
        if let Some(name) = given.filter(|_| !uts_is_ours && !uts_is_a_pods) {
            return Err(Error::Invalid {
                field: field.into(),
                why: format!("{name:?} would be set for the whole host: there is no UTS namespace"),
            });
        }
    }
    let squash = config::annotation(spec, ids::SQUASH) == Some("true");
    planned
        .warnings
        .extend(ids::check(mapped, &mut process, squash)?);
    Ok(Container {
        rootfs,
        rootfs_mounts,
        unshare: namespaces.unshare,
        join: namespaces.join,
        pid_namespace: namespaces.pid,
        sources: planned.sources,
        setup: wire::Setup {
            mounts: planned.mounts,
            populate_dev: planned.populate_dev,
            devices: planned.devices,
            hostname: spec
                .hostname()
                .clone()
                .filter(|name| uts_is_ours && !name.is_empty()),
            domainname: spec
                .domainname()
                .clone()
                .filter(|name| uts_is_ours && !name.is_empty()),
            loopback_up: namespaces.unshare.contains(CloneFlags::CLONE_NEWNET),
            new_cgroup_namespace: namespaces.new_cgroup,
            sysctls: sysctl::plan(spec)?,
            readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
            masked_paths: linux.masked_paths().clone().unwrap_or_default(),
            readonly_root: root.and_then(|r| r.readonly()).unwrap_or(false),
            keep_proc: planned.keep_proc,
            keep_sys: planned.keep_sys,
        },
        process,
        cgroup: hpk_cgroup::Request {
            path: hpk_cgroup::path(linux.cgroups_path().as_deref(), id)?,
            resources: linux.resources().clone().unwrap_or_default(),
        },
        hooks: hooks::plan(spec, id, bundle)?,
        squash,
        warnings: planned.warnings,
    })
}

/// Plans a further process of a container that has `squash`; with what was asked for and isn't done.
pub fn exec(
    process: &Process,
    terminal: bool,
    mapped: &Mapped,
    squash: bool,
) -> Result<(wire::Process, Vec<String>), Error> {
    refuse::process(process)?;
    let mut planned = process::plan(process, terminal)?;
    let warnings = ids::check(mapped, &mut planned, squash)?;
    Ok((planned, warnings))
}

struct Namespaces {
    unshare: CloneFlags,
    join: Vec<(PathBuf, CloneFlags)>,
    pid: PidNamespace,
    new_cgroup: bool,
}

fn namespaces(spec: &Spec) -> Result<Namespaces, Error> {
    let mut all = Namespaces {
        unshare: CloneFlags::CLONE_NEWNS,
        join: Vec::new(),
        pid: PidNamespace::Host,
        new_cgroup: false,
    };
    let linux = spec.linux().as_ref();
    for namespace in linux
        .and_then(|l| l.namespaces().as_ref())
        .into_iter()
        .flatten()
    {
        let path = namespace
            .path()
            .clone()
            .filter(|p| !p.as_os_str().is_empty());
        let flag = match namespace.typ() {
            LinuxNamespaceType::Mount if path.is_none() => continue,
            LinuxNamespaceType::Pid => {
                all.pid = path.map_or(PidNamespace::New, PidNamespace::Join);
                continue;
            }
            LinuxNamespaceType::Cgroup if path.is_none() => {
                all.new_cgroup = true;
                continue;
            }
            LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
            LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
            LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
            LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            other => {
                return Err(Error::Unsupported {
                    field: format!("linux.namespaces {}", format!("{other:?}").to_lowercase()),
                    why: "containers live in the bubble's",
                });
            }
        };
        match path {
            Some(path) => all.join.push((path, flag)),
            None => all.unshare |= flag,
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
