//! From the spec to what is to be done: pure, so tests compare values.
//!
//! - [`container`] – a whole container. [`exec`] – a further process in one.
//! - `mounts` – the spec's mounts and devices. `process` – its `process`. `rootfs` – the mounts of
//!   the Create request. `engine` – Apptainer's command line and configuration. `seccomp` – a filter
//!   for the kernel. [`namespaces`]. [`hooks`]. [`gpu`] – a driver's files and nodes. [`ids`] – which users there are. `sysctl`. `refuse` – what isn't supported. `cgroup_view` – /sys/fs/cgroup.

mod cgroup_view;
pub mod engine;
pub mod gpu;
pub mod hooks;
pub mod ids;
mod mounts;
pub mod namespaces;
mod process;
mod refuse;
pub mod rootfs;
pub mod seccomp;
mod sysctl;

use std::path::{Path, PathBuf};

use hpk_pause::wire;
use hpk_userns::Mapped;
use nix::sched::CloneFlags;
use oci_spec::runtime::{Process, Spec};

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
    pub join: Vec<namespaces::Joined>,
    pub pid_namespace: namespaces::Pid,
    /// Descriptors of the sources start at [`first_source`] in the configuration.
    pub sources: Vec<Source>,
    pub setup: wire::Setup,
    pub process: wire::Process,
    pub cgroup: hpk_cgroup::Request,
    pub hooks: hooks::Hooks,
    pub inherited: Inherited,
    /// Asked for, and not done: for the log.
    pub warnings: Vec<String>,
}

/// Index of the first source's descriptor: after the configuration itself and the streams.
pub fn first_source(terminal: bool) -> wire::Fd {
    if terminal { 1 } else { 4 }
}

/// Of host and domain, bytes (__NEW_UTS_LEN). /proc would cut a longer one.
const LONGEST_NAME: usize = 64;

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
        let named = root.map(|r| r.path()).filter(|p| !p.as_os_str().is_empty());
        bundle.join(named.ok_or_else(|| Error::Invalid {
            field: "root.path".into(),
            why: "it is missing, and nothing is mounted there".into(),
        })?)
    } else {
        bundle.join("rootfs")
    };
    let namespaces = namespaces::plan(spec)?;
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
        .any(|joined| joined.flag == CloneFlags::CLONE_NEWUTS);
    for (field, name) in [
        ("hostname", spec.hostname()),
        ("domainname", spec.domainname()),
    ] {
        let given = name.as_deref().filter(|name| !name.is_empty());
        if let Some(name) = given.filter(|name| name.len() > LONGEST_NAME) {
            return Err(Error::Invalid {
                field: field.into(),
                why: format!("{name:?} is longer than {LONGEST_NAME} bytes"),
            });
        }
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
    planned.warnings.extend(namespaces.warning);
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
            readonly_paths: below_root("linux.readonlyPaths", linux.readonly_paths())?,
            masked_paths: below_root("linux.maskedPaths", linux.masked_paths())?,
            readonly_root: root.and_then(|r| r.readonly()).unwrap_or(false),
            root_propagation: mounts::root_propagation(linux.rootfs_propagation().as_deref())?,
            keep_proc: planned.keep_proc,
            keep_sys: planned.keep_sys,
        },
        process,
        cgroup: hpk_cgroup::Request {
            path: hpk_cgroup::path(linux.cgroups_path().as_deref(), id)?,
            resources: linux.resources().clone().unwrap_or_default(),
        },
        hooks: hooks::plan(spec, id, bundle)?,
        inherited: Inherited {
            squash,
            gpu_libraries: false,
        },
        warnings: planned.warnings,
    })
}

/// Paths that are covered: a mount over the root itself would cover nothing.
fn below_root(field: &str, paths: &Option<Vec<String>>) -> Result<Vec<String>, Error> {
    let paths = paths.clone().unwrap_or_default();
    match paths.iter().find(|path| mounts::is_root(path)) {
        None => Ok(paths),
        Some(path) => Err(Error::Invalid {
            field: field.into(),
            why: format!("{path:?} is the root itself"),
        }),
    }
}

/// What a container has for its execs, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inherited {
    /// Processes are root's where their users aren't mapped.
    pub squash: bool,
    /// There are a GPU's libraries.
    pub gpu_libraries: bool,
}

/// Plans a further process of a container; with what was asked for and isn't done.
pub fn exec(
    process: &Process,
    terminal: bool,
    mapped: &Mapped,
    inherited: Inherited,
) -> Result<(wire::Process, Vec<String>), Error> {
    refuse::process(process)?;
    let mut planned = process::plan(process, terminal)?;
    let warnings = ids::check(mapped, &mut planned, inherited.squash)?;
    if inherited.gpu_libraries {
        gpu::extend_library_path(&mut planned.env);
    }
    Ok((planned, warnings))
}

#[cfg(test)]
mod tests;
