//! The command line of each daemon, from the bubble's spec: pure, so that it can be tested.

use std::net::Ipv4Addr;

use super::spec::BubbleSpec;
use crate::settings::{API_PORT, BUBBLE_ROOT, ETCD_PORT, FLANNEL_PREFIX, OVERLAY_PORT, UPLINK};

/// A program to keep running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    pub name: &'static str,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
}

/// All Go programs are one file, which tells them apart by its first argument.
const CONTROL_PLANE: &str = "/usr/local/bin/hpk-control-plane";
/// Where the image has its programs.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";
pub const OVERLAY_FILE: &str = "/run/hpk/overlay.json";

impl Daemon {
    fn new(name: &'static str, program: &[&str], arguments: &[(&str, String)]) -> Self {
        let mut argv: Vec<String> = program.iter().map(|word| (*word).to_owned()).collect();
        argv.extend(
            arguments
                .iter()
                .map(|(option, value)| format!("--{option}={value}")),
        );
        Self {
            name,
            argv,
            env: vec![
                ("PATH".into(), PATH.into()),
                ("HOME".into(), "/root".into()),
                ("LANG".into(), "C.UTF-8".into()),
            ],
        }
    }

    /// Go takes the machine's CPUs for its own, not the allocation's.
    fn with_cpus(self, spec: &BubbleSpec) -> Self {
        self.with_env("GOMAXPROCS", spec.grant.cpus.max(2).to_string())
    }

    fn with_env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}

/// A file of the node's PKI.
pub fn pki(name: &str) -> String {
    format!("{BUBBLE_ROOT}/pki/{name}")
}

fn own(name: &str) -> String {
    format!("{BUBBLE_ROOT}/{name}")
}

pub fn etcd(spec: &BubbleSpec) -> Daemon {
    let peer = "https://127.0.0.1:2380".to_owned();
    Daemon::new(
        "etcd",
        &["/usr/local/bin/etcd"],
        &[
            ("name", spec.node.clone()),
            ("data-dir", own("etcd")),
            ("listen-client-urls", format!("https://0.0.0.0:{ETCD_PORT}")),
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

pub fn flanneld(spec: &BubbleSpec) -> Daemon {
    Daemon::new(
        "flanneld",
        &[CONTROL_PLANE, "flanneld"],
        &[
            ("etcd-endpoints", spec.etcd.clone()),
            ("etcd-prefix", FLANNEL_PREFIX.into()),
            ("etcd-cafile", pki("etcd-ca.crt")),
            ("etcd-certfile", pki("etcd-client.crt")),
            ("etcd-keyfile", pki("etcd-client.key")),
            ("iface", UPLINK.into()),
            ("public-ip", spec.host_ip.to_string()),
            ("subnet-file", SUBNET_FILE.into()),
            ("ip-masq", "false".into()),
        ],
    )
    .with_cpus(spec)
}

pub fn net_daemon(spec: &BubbleSpec) -> Daemon {
    Daemon::new(
        "hpk-net-daemon",
        &["/usr/local/bin/hpk-net-daemon", "overlay"],
        &[
            ("etcd-endpoints", spec.etcd.clone()),
            ("etcd-cacert", pki("etcd-ca.crt")),
            ("etcd-cert", pki("etcd-client.crt")),
            ("etcd-key", pki("etcd-client.key")),
            ("node", spec.node.clone()),
            ("host-ip", spec.host_ip.to_string()),
            ("subnet-file", SUBNET_FILE.into()),
            ("state-file", OVERLAY_FILE.into()),
            ("mode", "kernel".into()),
            ("vni", spec.vni.to_string()),
            ("udp-port", spec.overlay_port.to_string()),
            ("listen-port", OVERLAY_PORT.to_string()),
            ("mtu", spec.link_mtu.to_string()),
        ],
    )
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

/// `kernel`: the running kernel's release; kube-proxy's nftables mode wants 5.13.
pub fn kube_proxy(spec: &BubbleSpec, kernel: &str) -> Daemon {
    let mode = if kernel_version(kernel) >= (5, 13) {
        "nftables"
    } else {
        "iptables"
    };
    Daemon::new(
        "kube-proxy",
        &[CONTROL_PLANE, "kube-proxy"],
        &[
            ("kubeconfig", own("kube-proxy.kubeconfig")),
            ("hostname-override", spec.node.clone()),
            ("proxy-mode", mode.into()),
            ("cluster-cidr", spec.network.pods.to_string()),
            // /proc/sys/net/netfilter is not a bubble's to write.
            ("conntrack-max-per-core", "0".into()),
            ("conntrack-min", "0".into()),
            ("conntrack-tcp-timeout-established", "0s".into()),
            ("conntrack-tcp-timeout-close-wait", "0s".into()),
            ("healthz-bind-address", "127.0.0.1:10256".into()),
            ("metrics-bind-address", "127.0.0.1:10249".into()),
        ],
    )
    .with_cpus(spec)
}

fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
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

/// What a pod of the machine's own processes is left: none of it is offered to pods.
pub fn kubelet(spec: &BubbleSpec) -> Daemon {
    let labels: Vec<_> = spec
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let serving = format!("kubelet-{}", spec.node);
    let certificate = pki(&format!("{serving}.crt"));
    let key = pki(&format!("{serving}.key"));
    let mut daemon = Daemon::new(
        "hpk-kubelet",
        &["/usr/local/bin/hpk-kubelet"],
        &[
            ("kubeconfig", own("kubelet.kubeconfig")),
            ("node-name", spec.node.clone()),
            ("node-ip", spec.node_ip().to_string()),
            ("root-dir", own("kubelet")),
            ("run-dir", "/run/hpk".into()),
            ("cni-conf-dir", "/etc/cni/net.d".into()),
            ("cni-bin-dir", "/opt/cni/bin".into()),
            ("cni-cache-dir", own("cni/cache")),
            ("runtime", "/usr/local/bin/containerd-shim-hpk-v2".into()),
            ("pause-binary", "/usr/local/bin/hpk-pause".into()),
            ("image-store", spec.store.display().to_string()),
            ("registries", spec.registries.display().to_string()),
            ("cluster-dns", spec.network.dns().to_string()),
            ("cluster-domain", spec.network.domain.clone()),
            ("tls-cert-file", certificate.clone()),
            ("tls-private-key-file", key.clone()),
            ("client-ca-file", pki("ca.crt")),
            (
                "capacity",
                format!(
                    "cpu={},memory={}Mi,pods=110",
                    spec.grant.cpus,
                    spec.grant.memory_mib()
                ),
            ),
            ("node-labels", labels.join(",")),
            ("pod-log-dir", "/var/log/pods".into()),
            ("logger", "/usr/local/bin/hpk-logger".into()),
            ("address", spec.node_ip().to_string()),
            ("port", "10250".into()),
        ],
    )
    .with_env("APISERVER_CERT_LOCATION", certificate)
    .with_env("APISERVER_KEY_LOCATION", key);
    daemon.env.extend(spec.proxies.iter().cloned());
    daemon
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocation::Grant;
    use crate::bubble::spec::OverlayMode;
    use crate::settings::Network;

    pub fn spec() -> BubbleSpec {
        BubbleSpec {
            cluster: "7".into(),
            node: "n1".into(),
            controller: true,
            nodes: vec!["n1".into()],
            host_ip: "10.99.0.11".parse().unwrap(),
            subnet: "10.244.1.0/24".parse().unwrap(),
            network: Network {
                pods: "10.244.0.0/16".parse().unwrap(),
                services: "10.43.0.0/16".parse().unwrap(),
                domain: "cluster.local".into(),
            },
            etcd: "https://127.0.0.1:2379".into(),
            api: "https://127.0.0.1:6443".into(),
            vni: 77,
            overlay_port: 8473,
            overlay_mode: OverlayMode::Kernel,
            link_mtu: 1500,
            grant: Grant {
                cpus: 2,
                memory_mib: Some(4096),
            },
            labels: vec![("a".into(), "b".into())],
            store: "/home/hpc/.hpk/store".into(),
            registries: "/home/hpc/.hpk/registries.yaml".into(),
            logs: "/home/hpc/.hpk/clusters/7/logs/n1".into(),
            proxies: vec![("https_proxy".into(), "http://p:3128".into())],
        }
    }

    fn every() -> Vec<Daemon> {
        let spec = spec();
        vec![
            etcd(&spec),
            flanneld(&spec),
            net_daemon(&spec),
            apiserver(&spec),
            controller_manager(&spec),
            scheduler(&spec),
            kube_proxy(&spec, "6.1.0"),
            coredns(&spec),
            kubelet(&spec),
        ]
    }

    #[test]
    fn no_secret_stands_in_a_command_line() {
        for daemon in every() {
            for word in &daemon.argv {
                assert!(
                    !word.contains("BEGIN") && !word.contains("token="),
                    "{word}"
                );
            }
        }
    }

    #[test]
    fn only_what_reaches_the_internet_gets_the_proxies() {
        for daemon in every() {
            let has = daemon.env.iter().any(|(name, _)| name == "https_proxy");
            assert_eq!(has, daemon.name == "hpk-kubelet", "{}", daemon.name);
        }
    }

    #[test]
    fn the_api_server_advertises_the_nodes_address_and_wants_certificates() {
        let argv = apiserver(&spec()).argv.join(" ");
        assert!(argv.contains("--advertise-address=10.244.1.0 "), "{argv}");
        assert!(argv.contains("--anonymous-auth=false"), "{argv}");
        assert!(argv.contains("--authorization-mode=Node,RBAC"), "{argv}");
    }

    #[test]
    fn the_nodes_capacity_is_what_slurm_granted() {
        let argv = kubelet(&spec()).argv;
        assert!(argv.contains(&"--capacity=cpu=2,memory=4096Mi,pods=110".to_owned()));
    }

    #[test]
    fn an_old_kernel_gets_the_iptables_proxy() {
        let mode = |kernel| kube_proxy(&spec(), kernel).argv.join(" ");
        assert!(mode("4.18.0-553.el8").contains("--proxy-mode=iptables"));
        assert!(mode("5.14.0-427.el9").contains("--proxy-mode=nftables"));
        assert!(mode("6.18.44-x").contains("--proxy-mode=nftables"));
    }
}
