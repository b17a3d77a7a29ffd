//! What a pod is called. Source: pkg/kubelet/kubelet_pods.go (GeneratePodHostNameAndDomain) and
//! pkg/kubelet/util (GetNodenameForKernel).

use k8s_openapi::api::core::v1::Pod;
use thiserror::Error;

/// Characters of a pod's own name that are used.
const MAX_HOSTNAME: usize = 63;
/// Characters that the kernel keeps (utsname(2)).
const MAX_NODENAME: usize = 64;

#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({} characters is the max, {} characters requested)",
    MAX_NODENAME,
    .fqdn.len()
)]
pub struct TooLong {
    pub fqdn: String,
}

/// A pod's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub hostname: String,
    /// `SUBDOMAIN.NAMESPACE.svc.CLUSTER`, if the pod has a subdomain.
    pub domain: Option<String>,
    /// What `hostname` prints: with the domain where setHostnameAsFQDN is set; the node's name on
    /// its network.
    pub nodename: String,
}

/// The names of `pod` in a cluster of this domain, on the node of this name.
pub fn names(pod: &Pod, cluster_domain: &str, node: &str) -> Result<Names, TooLong> {
    let spec = pod.spec.as_ref();
    let (hostname, domain) = match spec.and_then(|s| s.hostname_override.as_deref()) {
        Some(name) => (cut(name), None),
        None => {
            let given = spec.and_then(|s| s.hostname.as_deref());
            let given = given.filter(|name| !name.is_empty());
            let name = given.or(pod.metadata.name.as_deref()).unwrap_or_default();
            let subdomain = spec.and_then(|s| s.subdomain.as_deref());
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let domain = subdomain
                .filter(|subdomain| !subdomain.is_empty())
                .map(|subdomain| format!("{subdomain}.{namespace}.svc.{cluster_domain}"));
            (cut(name), domain)
        }
    };
    let on_host = spec.and_then(|s| s.host_network) == Some(true);
    let as_fqdn = spec.and_then(|s| s.set_hostname_as_fqdn) == Some(true);
    let nodename = match &domain {
        _ if on_host => node.to_owned(),
        Some(domain) if as_fqdn => {
            let fqdn = format!("{hostname}.{domain}");
            if fqdn.len() > MAX_NODENAME {
                return Err(TooLong { fqdn });
            }
            fqdn
        }
        _ => hostname.clone(),
    };
    Ok(Names {
        hostname,
        domain,
        nodename,
    })
}

/// As long as a name may be, not ending in a dash or dot.
fn cut(name: &str) -> String {
    if name.len() <= MAX_HOSTNAME {
        return name.to_owned();
    }
    let cut: String = name.chars().take(MAX_HOSTNAME).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(spec: serde_json::Value) -> Result<Names, TooLong> {
        let meta = json!({"name": "web", "namespace": "ns1"});
        let pod = serde_json::from_value(json!({"metadata": meta, "spec": spec})).expect("pod");
        names(&pod, "cluster.local", "node1")
    }

    #[test]
    fn the_domain_is_the_subdomains_and_part_of_the_hostname_only_on_request() {
        let plain = of(json!({"containers": [], "hostname": "h", "subdomain": "sub"}));
        let plain = plain.expect("names");
        assert_eq!(plain.domain.as_deref(), Some("sub.ns1.svc.cluster.local"));
        assert_eq!(
            (plain.hostname.as_str(), plain.nodename.as_str()),
            ("h", "h")
        );
        let full = of(json!({"containers": [], "subdomain": "sub", "setHostnameAsFQDN": true}));
        assert_eq!(
            full.expect("names").nodename,
            "web.sub.ns1.svc.cluster.local"
        );
    }

    #[test]
    fn an_override_goes_before_hostname_and_subdomain() {
        let spec = json!({"containers": [], "hostname": "h", "subdomain": "sub", "hostnameOverride": "a.b"});
        let names = of(spec).expect("names");
        assert_eq!((names.nodename.as_str(), names.domain), ("a.b", None));
    }

    #[test]
    fn a_full_name_that_the_kernel_cannot_hold_is_refused() {
        let sub = "s".repeat(60);
        let error = of(json!({"containers": [], "subdomain": sub, "setHostnameAsFQDN": true}))
            .expect_err("too long");
        assert!(
            error
                .to_string()
                .contains("64 characters is the max, 86 characters")
        );
    }

    #[test]
    fn a_long_name_is_cut_and_ends_in_a_letter() {
        let name = format!("{}-{}", "a".repeat(62), "b");
        assert_eq!(cut(&name), "a".repeat(62));
    }

    #[test]
    fn on_the_nodes_network_it_is_the_node() {
        let names = of(json!({"containers": [], "hostNetwork": true})).expect("names");
        assert_eq!(names.nodename, "node1");
    }
}
