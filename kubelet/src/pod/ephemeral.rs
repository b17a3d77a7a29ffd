//! Ephemeral containers (`kubectl debug`): added to a pod that runs, started once, never again.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};

/// The same as one of the pod's other containers; the API has a type of its own for it.
pub fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let it = ephemeral.clone();
    Container {
        args: it.args,
        command: it.command,
        env: it.env,
        env_from: it.env_from,
        image: it.image,
        image_pull_policy: it.image_pull_policy,
        lifecycle: it.lifecycle,
        liveness_probe: it.liveness_probe,
        name: it.name,
        ports: it.ports,
        readiness_probe: it.readiness_probe,
        resize_policy: it.resize_policy,
        resources: it.resources,
        restart_policy: it.restart_policy,
        restart_policy_rules: it.restart_policy_rules,
        security_context: it.security_context,
        startup_probe: it.startup_probe,
        stdin: it.stdin,
        stdin_once: it.stdin_once,
        termination_message_path: it.termination_message_path,
        termination_message_policy: it.termination_message_policy,
        tty: it.tty,
        volume_devices: it.volume_devices,
        volume_mounts: it.volume_mounts,
        working_dir: it.working_dir,
    }
}

/// The container whose processes the ephemeral container `name` is to see, if it names one.
pub fn target<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a str> {
    let all = spec.ephemeral_containers.as_deref().unwrap_or_default();
    let found = all.iter().find(|ephemeral| ephemeral.name == name)?;
    let target = found.target_container_name.as_deref();
    target.filter(|target| !target.is_empty())
}
