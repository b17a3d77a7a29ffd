//! etcd, Kubernetes' control plane, and the cluster's DNS.

use std::net::Ipv4Addr;

use super::{CONTROL_PLANE, Daemon, own, pki};
use crate::bubble::spec::BubbleSpec;
use crate::settings::{API_PORT, BUBBLE_ROOT, ETCD_PORT};

pub fn etcd(spec: &BubbleSpec) -> Daemon {
    let peer = "https://127.0.0.1:2380".to_owned();
    Daemon::new(
        "etcd",
        &["/usr/local/bin/etcd"],
        &[
            ("name", spec.node.clone()),
            ("data-dir", own("etcd")),
            // The way from the host's port ends at the loopback: pods can't reach etcd at all.
            (
                "listen-client-urls",
                format!("https://127.0.0.1:{ETCD_PORT}"),
            ),
            ("enable-grpc-gateway", "false".into()),
            ("advertise-client-urls", spec.etcd.clone()),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", format!("{}={peer}", spec.node)),
            ("client-cert-auth", "true".into()),
            ("cert-file", pki("etcd.crt")),
            ("key-file", pki("etcd.key")),
            ("trusted-ca-file", pki("etcd-ca.crt")),
            ("peer-client-cert-auth", "true".into()),
            ("peer-cert-file", pki("etcd.crt")),
            ("peer-key-file", pki("etcd.key")),
            ("peer-trusted-ca-file", pki("etcd-ca.crt")),
            // One member's state, gone with the job: a power cut loses no more than the job does.
            ("unsafe-no-fsync", "true".into()),
            ("auto-compaction-retention", "5m".into()),
            ("quota-backend-bytes", (2u64 << 30).to_string()),
            ("log-level", "warn".into()),
        ],
    )
    .with_cpus(spec)
}

pub fn apiserver(spec: &BubbleSpec) -> Daemon {
    let network = &spec.network;
    Daemon::new(
        "kube-apiserver",
        &[CONTROL_PLANE, "kube-apiserver"],
        &[
            ("advertise-address", spec.node_ip().to_string()),
            ("bind-address", "0.0.0.0".into()),
            ("secure-port", API_PORT.to_string()),
            ("tls-cert-file", pki("apiserver.crt")),
            ("tls-private-key-file", pki("apiserver.key")),
            ("client-ca-file", pki("ca.crt")),
            ("anonymous-auth", "false".into()),
            ("authorization-mode", "Node,RBAC".into()),
            ("enable-admission-plugins", "NodeRestriction".into()),
            ("etcd-servers", spec.etcd.clone()),
            ("etcd-cafile", pki("etcd-ca.crt")),
            ("etcd-certfile", pki("apiserver-etcd-client.crt")),
            ("etcd-keyfile", pki("apiserver-etcd-client.key")),
            ("kubelet-certificate-authority", pki("ca.crt")),
            (
                "kubelet-client-certificate",
                pki("apiserver-kubelet-client.crt"),
            ),
            ("kubelet-client-key", pki("apiserver-kubelet-client.key")),
            (
                "kubelet-preferred-address-types",
                "InternalIP,Hostname".into(),
            ),
            (
                "service-account-issuer",
                format!("https://kubernetes.default.svc.{}", network.domain),
            ),
            ("service-account-key-file", pki("sa.pub")),
            ("service-account-signing-key-file", pki("sa.key")),
            ("service-cluster-ip-range", network.services.to_string()),
            ("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
            ("requestheader-allowed-names", "front-proxy-client".into()),
            (
                "requestheader-extra-headers-prefix",
                "X-Remote-Extra-".into(),
            ),
            ("requestheader-group-headers", "X-Remote-Group".into()),
            ("requestheader-username-headers", "X-Remote-User".into()),
            ("proxy-client-cert-file", pki("front-proxy-client.crt")),
            ("proxy-client-key-file", pki("front-proxy-client.key")),
            ("enable-aggregator-routing", "true".into()),
            ("allow-privileged", "true".into()),
            ("profiling", "false".into()),
        ],
    )
    .with_cpus(spec)
}

pub fn controller_manager(spec: &BubbleSpec) -> Daemon {
    let kubeconfig = own("controller-manager.kubeconfig");
    Daemon::new(
        "kube-controller-manager",
        &[CONTROL_PLANE, "kube-controller-manager"],
        &[
            ("kubeconfig", kubeconfig.clone()),
            ("authentication-kubeconfig", kubeconfig.clone()),
            ("authorization-kubeconfig", kubeconfig),
            ("bind-address", "127.0.0.1".into()),
            ("leader-elect", "false".into()),
            ("use-service-account-credentials", "true".into()),
            ("root-ca-file", pki("ca.crt")),
            ("service-account-private-key-file", pki("sa.key")),
            ("cluster-signing-cert-file", pki("ca.crt")),
            ("cluster-signing-key-file", pki("ca.key")),
            ("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
            // At the default 20 a second, pods are first admitted 5 s later: each controller
            // makes its own service account first.
            ("kube-api-qps", "200".into()),
            ("kube-api-burst", "400".into()),
            ("allocate-node-cidrs", "false".into()),
            ("cluster-cidr", spec.network.pods.to_string()),
            (
                "service-cluster-ip-range",
                spec.network.services.to_string(),
            ),
            ("profiling", "false".into()),
        ],
    )
    .with_cpus(spec)
}

pub fn scheduler(spec: &BubbleSpec) -> Daemon {
    let kubeconfig = own("scheduler.kubeconfig");
    Daemon::new(
        "kube-scheduler",
        &[CONTROL_PLANE, "kube-scheduler"],
        &[
            ("kubeconfig", kubeconfig.clone()),
            ("authentication-kubeconfig", kubeconfig.clone()),
            ("authorization-kubeconfig", kubeconfig),
            ("bind-address", "127.0.0.1".into()),
            ("leader-elect", "false".into()),
            ("kube-api-qps", "200".into()),
            ("kube-api-burst", "400".into()),
            ("profiling", "false".into()),
        ],
    )
    .with_cpus(spec)
}

pub fn coredns(spec: &BubbleSpec) -> Daemon {
    Daemon::new(
        "coredns",
        &[CONTROL_PLANE, "coredns"],
        &[("conf", own("Corefile"))],
    )
    .with_cpus(spec)
}

/// CoreDNS on the node's address: Service and EndpointSlice `kube-dns` lead there.
pub fn corefile(node_ip: Ipv4Addr, domain: &str) -> String {
    format!(
        ".:53 {{
    bind {node_ip}
    errors
    health 127.0.0.1:8080
    ready 127.0.0.1:8181
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        kubeconfig {BUBBLE_ROOT}/coredns.kubeconfig
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    forward . /etc/resolv.conf
    cache 30
    loadbalance
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bubble::daemons::tests::spec;

    #[test]
    fn the_api_server_advertises_the_nodes_address_and_wants_certificates() {
        let argv = apiserver(&spec()).argv.join(" ");
        assert!(argv.contains("--advertise-address=10.244.1.0 "), "{argv}");
        assert!(argv.contains("--anonymous-auth=false"), "{argv}");
        assert!(argv.contains("--authorization-mode=Node,RBAC"), "{argv}");
    }

    #[test]
    fn etcd_is_not_on_the_pod_network() {
        let argv = etcd(&spec()).argv;
        assert!(argv.contains(&"--listen-client-urls=https://127.0.0.1:2379".to_owned()));
        assert!(argv.contains(&"--client-cert-auth=true".to_owned()));
    }
}
