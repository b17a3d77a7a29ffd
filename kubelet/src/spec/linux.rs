//! Namespaces and hidden paths.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod};
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType};

use super::Sandbox;
use crate::pod::sysctls;

fn namespace(
    kind: LinuxNamespaceType,
    path: Option<PathBuf>,
) -> Result<LinuxNamespace, OciSpecError> {
    let builder = LinuxNamespaceBuilder::default().typ(kind);
    match path {
        Some(path) => builder.path(path).build(),
        None => builder.build(),
    }
}

fn flag(pod: &Pod, of: impl Fn(&k8s_openapi::api::core::v1::PodSpec) -> Option<bool>) -> bool {
    pod.spec.as_ref().and_then(of).unwrap_or(false)
}

/// New ones, but the network's, which CNI has filled before, and those shared with the node.
pub fn sandbox_namespaces(
    pod: &Pod,
    sandbox: &Sandbox,
) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let mut all = vec![namespace(LinuxNamespaceType::Mount, None)?];
    if !flag(pod, |spec| spec.host_pid) {
        all.push(namespace(LinuxNamespaceType::Pid, None)?);
    }
    if !flag(pod, |spec| spec.host_ipc) {
        all.push(namespace(LinuxNamespaceType::Ipc, None)?);
    }
    if let Some(netns) = &sandbox.netns {
        all.push(namespace(LinuxNamespaceType::Network, Some(netns.clone()))?);
        all.push(namespace(LinuxNamespaceType::Uts, None)?);
    }
    Ok(all)
}

/// The sandbox's network, IPC and UTS namespace (PID on request), and a mount namespace of its own.
/// `beside`: a process whose PID namespace is joined.
pub fn container_namespaces(
    pod: &Pod,
    sandbox: &Sandbox,
    beside: Option<u32>,
) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let of = |pid: u32, kind: &str| Some(PathBuf::from(format!("/proc/{pid}/ns/{kind}")));
    let of_sandbox = |kind: &str| of(sandbox.pid, kind);
    let mut all = vec![namespace(LinuxNamespaceType::Mount, None)?];
    if flag(pod, |spec| spec.share_process_namespace) {
        all.push(namespace(LinuxNamespaceType::Pid, of_sandbox("pid"))?);
    } else if !flag(pod, |spec| spec.host_pid) {
        let joined = beside.and_then(|pid| of(pid, "pid"));
        all.push(namespace(LinuxNamespaceType::Pid, joined)?);
    }
    if !flag(pod, |spec| spec.host_ipc) {
        all.push(namespace(LinuxNamespaceType::Ipc, of_sandbox("ipc"))?);
    }
    if let Some(netns) = &sandbox.netns {
        all.push(namespace(LinuxNamespaceType::Network, Some(netns.clone()))?);
        all.push(namespace(LinuxNamespaceType::Uts, of_sandbox("uts"))?);
    }
    Ok(all)
}

/// Who sets a sysctl: the shim with the sandbox, or we in the network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Sandbox,
    Network,
}

/// The pod's sysctls of one side, with containerd's default for the network: unprivileged low ports.
/// (Its other one, unprivileged ping, comes with the namespace.)
pub fn sysctls(pod: &Pod, side: Side) -> HashMap<String, String> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let mut all = HashMap::new();
    if side == Side::Network {
        all.insert(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        );
    }
    for sysctl in context
        .and_then(|c| c.sysctls.as_ref())
        .into_iter()
        .flatten()
    {
        let name = sysctls::normal(&sysctl.name);
        if name.starts_with("net.") == (side == Side::Network) {
            all.insert(name, sysctl.value.clone());
        }
    }
    all
}

/// securityContext.procMount: Unmasked.
pub fn unmasked_proc(container: &Container) -> bool {
    let context = container.security_context.as_ref();
    context.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked")
}
