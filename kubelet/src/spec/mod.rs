//! From a pod's spec to OCI runtime specs: pure, tested on values.
//!
//! - `process`: arguments, user, capabilities
//! - `mounts`: what every container has mounted, and its volumes
//! - `linux`: namespaces, hidden paths
//! - `limits`: CPU and memory
//! - `seccomp`: which system calls
//! - `ids`: users and groups that the node lacks
//! - `hostname`: what the pod is called
//! - `files`: `/etc/hosts`, `/etc/resolv.conf`
//! - here: a sandbox's and a container's whole spec

pub mod files;
pub mod hostname;
pub mod ids;
pub mod limits;
pub mod linux;
pub mod mounts;
pub mod process;
pub mod seccomp;

use std::collections::HashMap;
use std::path::PathBuf;

use hpk_images::container_defaults::{MASKED_PATHS, READONLY_PATHS, kernel_mounts};
use hpk_userns::Mapped;
use k8s_openapi::api::core::v1::{Container, Pod};
use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    LinuxBuilder, LinuxDevice, Mount, ProcessBuilder, RootBuilder, Spec, SpecBuilder, User,
    UserBuilder,
};
use thiserror::Error;

use crate::qos;

/// Why a container can't be described (reason CreateContainerConfigError).
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    NoCommand(#[from] hpk_images::process_defaults::NoCommand),
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error(transparent)]
    Ids(#[from] ids::Error),
    #[error(transparent)]
    Mounts(#[from] mounts::Error),
    #[error(transparent)]
    Seccomp(#[from] seccomp::Error),
    #[error(transparent)]
    Hostname(#[from] hostname::TooLong),
    #[error("can't put the OCI spec together")]
    Oci(#[from] OciSpecError),
}

/// The node's side of every spec.
#[derive(Debug, Clone)]
pub struct Host {
    /// Bytes, for oom scores.
    pub memory: i128,
    /// The kubelet's own oom_score_adj: a user can't go below it.
    pub oom_score_floor: i32,
    /// Capabilities that can be given at all (the bounding set's numbers, capabilities(7)).
    pub bounding: u64,
    /// Users and groups that there are.
    pub ids: Mapped,
    pub machine: seccomp::Machine,
}

/// What of the sandbox its containers join.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub id: String,
    pub pid: u32,
    /// None on the host network.
    pub netns: Option<PathBuf>,
}

/// Everything a container's spec is made of.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub image: &'a ImageConfiguration,
    /// The user after image, pod and container had their say.
    pub user: &'a process::User,
    /// Whether root is in another user's place, and so has no capabilities.
    pub is_stand_in: bool,
    /// `NAME=value`, from `env`.
    pub env: &'a [(String, String)],
    pub mounts: Vec<Mount>,
    /// What the pod's `hostname` prints.
    pub nodename: &'a str,
    pub sandbox: &'a Sandbox,
    /// A process of the container whose processes this one is to see.
    pub beside: Option<u32>,
    pub host: &'a Host,
    /// Device nodes of its own.
    pub devices: Vec<LinuxDevice>,
    /// The cgroup that the container asks for.
    pub cgroup: PathBuf,
    /// Whether its processes are killed for lack of memory all together.
    pub oom_group: bool,
    /// The profile that it asks for; none for a container that isn't confined.
    pub seccomp: Option<&'a seccomp::Profile>,
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// A pod's annotation: which GPUs' drivers its containers have.
pub const GPU: &str = "slurm.hpk.io/gpu";
/// The container's that it is for HPK's shim, which says which values there are.
const SHIMS_GPU: &str = "io.hpk.gpu";

/// Annotations by which a shim groups containers into one process per pod (containerd's CRI names), and what
/// the pod asks of HPK's.
fn annotations(
    pod: &Pod,
    kind: &str,
    sandbox: &str,
    name: Option<&str>,
) -> HashMap<String, String> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let key = |suffix: &str| format!("io.kubernetes.cri.{suffix}");
    let mut annotations = HashMap::from([
        (key("container-type"), kind.to_owned()),
        (key("sandbox-id"), sandbox.to_owned()),
        (key("sandbox-name"), text(&meta.name)),
        (key("sandbox-namespace"), text(&meta.namespace)),
        (key("sandbox-uid"), text(&meta.uid)),
    ]);
    if let Some(name) = name {
        annotations.insert(key("container-name"), name.to_owned());
        let asked = meta.annotations.as_ref().and_then(|all| all.get(GPU));
        if let Some(drivers) = asked {
            annotations.insert(SHIMS_GPU.to_owned(), drivers.clone());
        }
    }
    annotations
}

/// The spec of a pod's sandbox: one small program that holds the namespaces.
pub fn sandbox(
    pod: &Pod,
    sandbox: &Sandbox,
    hostname: &str,
    host: &Host,
    cgroup: PathBuf,
) -> Result<Spec, Error> {
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(sandbox_user(&host.ids)?)
        .args(vec!["/pause".to_owned()])
        .env(vec![format!(
            "PATH={}",
            hpk_images::process_defaults::DEFAULT_PATH
        )])
        .cwd("/")
        .no_new_privileges(true)
        .oom_score_adj((-998).max(host.oom_score_floor))
        .build()?;
    let linux = LinuxBuilder::default()
        .namespaces(linux::sandbox_namespaces(pod, sandbox)?)
        .cgroups_path(cgroup)
        .sysctl(linux::sysctls(pod, linux::Side::Sandbox))
        .masked_paths(texts(&MASKED_PATHS))
        .readonly_paths(texts(&READONLY_PATHS))
        .build()?;
    let builder = SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(true)
                .build()?,
        )
        .process(process)
        .mounts(mounts::sandbox()?)
        .annotations(annotations(pod, "sandbox", &sandbox.id, None))
        .linux(linux);
    let mut spec = builder.build()?;
    // The builder's own default is a name.
    let named = sandbox.netns.is_some();
    spec.set_hostname(named.then(|| hostname.to_owned()));
    Ok(spec)
}

/// Nobody, as in the stock sandbox image; root where that is all there is.
fn sandbox_user(ids: &Mapped) -> Result<User, OciSpecError> {
    const NOBODY: u32 = 65_535;
    let has = ids.has_user(NOBODY) && ids.has_group(NOBODY);
    let id = if has { NOBODY } else { 0 };
    UserBuilder::default().uid(id).gid(id).build()
}

/// The spec of one of the pod's containers.
pub fn container(inputs: Inputs<'_>) -> Result<Spec, Error> {
    let Inputs {
        pod,
        container,
        image,
        sandbox,
        host,
        ..
    } = inputs;
    let context = container.security_context.as_ref();
    let privileged = context.and_then(|c| c.privileged) == Some(true);
    let lookup = |name: &str| {
        inputs
            .env
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
    };
    let defaults = process::defaults(container, image, &lookup)?;
    let env = process::environment(&defaults, inputs.env, inputs.nodename, inputs.user);
    let cwd = match container.working_dir.as_deref() {
        Some(dir) if !dir.is_empty() => dir.to_owned(),
        _ => defaults.cwd.clone(),
    };
    let class = pod.spec.as_ref().map_or(qos::Class::BestEffort, qos::class);
    let whole = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let limits = limits::Limits::of_container(container.resources.as_ref(), whole);
    let score = qos::oom_score_adj(class, container, host.memory).max(host.oom_score_floor);
    let escalation = context.and_then(|c| c.allow_privilege_escalation);
    let bounding = if inputs.is_stand_in { 0 } else { host.bounding };
    let capabilities = process::capabilities(context, bounding)?;
    let possible = capabilities.bounding().clone().unwrap_or_default();
    let process = ProcessBuilder::default()
        .terminal(container.tty.unwrap_or(false))
        .user(inputs.user.to_oci()?)
        .args(defaults.args)
        .env(env)
        .cwd(cwd)
        .capabilities(capabilities)
        .no_new_privileges(escalation == Some(false) && !privileged)
        .oom_score_adj(score)
        .build()?;
    let mut resources = limits.for_new()?;
    if inputs.oom_group {
        let unified = HashMap::from([("memory.oom.group".to_owned(), "1".to_owned())]);
        resources.set_unified(Some(unified));
    }
    let mut linux = LinuxBuilder::default()
        .namespaces(linux::container_namespaces(pod, sandbox, inputs.beside)?)
        .cgroups_path(inputs.cgroup)
        .resources(resources)
        .masked_paths(Vec::new())
        .readonly_paths(Vec::new());
    if !inputs.devices.is_empty() {
        linux = linux.devices(inputs.devices);
    }
    if let Some(profile) = inputs.seccomp {
        let resolved = profile.resolve(&host.machine, &possible);
        linux = linux.seccomp(resolved.map_err(OciSpecError::from)?);
    }
    if !privileged && !linux::unmasked_proc(container) {
        linux = linux
            .masked_paths(texts(&MASKED_PATHS))
            .readonly_paths(texts(&READONLY_PATHS));
    }
    let read_only = context.and_then(|c| c.read_only_root_filesystem) == Some(true);
    let mut all = kernel_mounts(privileged)?;
    all.extend(inputs.mounts);
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(read_only)
                .build()?,
        )
        .process(process)
        .mounts(mounts::in_order(all))
        .annotations(annotations(
            pod,
            "container",
            &sandbox.id,
            Some(&container.name),
        ))
        .linux(linux.build()?)
        .build()?;
    // The sandbox has named the UTS namespace.
    spec.set_hostname(None);
    Ok(spec)
}

#[cfg(test)]
mod tests;
