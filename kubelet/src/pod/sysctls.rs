//! Which sysctls a pod may set. Source: pkg/kubelet/sysctl.

use k8s_openapi::api::core::v1::PodSpec;

/// Of a namespace of the pod's own, and without influence on other pods.
const SAFE: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Which sysctl of the pod's is refused, and why. `allowed`: names, or prefixes ending in `*`.
pub fn forbidden(spec: &PodSpec, allowed: &[String]) -> Option<String> {
    let context = spec.security_context.as_ref()?;
    let mut wanted = context.sysctls.iter().flatten();
    wanted.find_map(|sysctl| {
        let name = normal(&sysctl.name);
        let is_net = name.starts_with("net.");
        if is_net && spec.host_network == Some(true) {
            return Some(format!("{name:?} not allowed with host net enabled"));
        }
        let is_ipc = ["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."];
        let is_ipc = is_ipc.iter().any(|prefix| name.starts_with(prefix));
        if is_ipc && spec.host_ipc == Some(true) {
            return Some(format!("{name:?} not allowed with host ipc enabled"));
        }
        let listed = SAFE.contains(&name.as_str())
            || allowed
                .iter()
                .any(|pattern| match pattern.strip_suffix('*') {
                    Some(prefix) => name.starts_with(prefix),
                    None => name == *pattern,
                });
        (!listed).then(|| format!("{name:?} not allowlisted"))
    })
}

/// With dots between the parts: a name may have slashes there, and then dots in a part.
pub fn normal(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name[first..].starts_with('/') => {
            let swap = |c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(name: &str, host: bool, allowed: &[&str]) -> Option<String> {
        let context = json!({"sysctls": [{"name": name, "value": "1"}]});
        let spec = json!({"containers": [], "securityContext": context,
            "hostNetwork": host, "hostIPC": host});
        let spec = serde_json::from_value(spec).expect("spec");
        let allowed: Vec<String> = allowed.iter().map(|text| (*text).to_owned()).collect();
        forbidden(&spec, &allowed)
    }

    #[test]
    fn safe_ones_are_allowed_with_dots_and_with_slashes() {
        assert_eq!(of("kernel.shm_rmid_forced", false, &[]), None);
        assert_eq!(of("kernel/shm_rmid_forced", false, &[]), None);
    }

    #[test]
    fn others_are_named_unless_they_are_allowed() {
        let refused = of("kernel.msgmax", false, &[]).expect("refused");
        assert_eq!(refused, "\"kernel.msgmax\" not allowlisted");
        assert_eq!(of("kernel.msgmax", false, &["kernel.msg*"]), None);
        assert_eq!(
            of("net/core/somaxconn", false, &["net.core.somaxconn"]),
            None
        );
    }

    #[test]
    fn the_nodes_own_are_not_a_pods_to_set() {
        let net = of("net.ipv4.tcp_rmem", true, &[]).expect("refused");
        assert!(net.ends_with("not allowed with host net enabled"));
        let ipc = of("kernel.shm_rmid_forced", true, &[]).expect("refused");
        assert!(ipc.ends_with("not allowed with host ipc enabled"));
    }
}
