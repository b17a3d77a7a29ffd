//! The command line of each daemon, from the bubble's spec: pure, so that it can be tested.
//!
//! Here those of every node; in `control_plane` those of the first.

mod control_plane;

use std::path::Path;

pub use control_plane::{apiserver, controller_manager, coredns, corefile, etcd, scheduler};

use super::spec::BubbleSpec;
use crate::gpus::Device;
use crate::settings::{BUBBLE_ROOT, FLANNEL_PREFIX, OVERLAY_PORT, OVERLAY_PREFIX, UPLINK};

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

/// The overlay's daemon in its mode `kernel`; `udp_port`: the host's port that leads here.
pub fn net_daemon(spec: &BubbleSpec, udp_port: u16) -> Daemon {
    let mut options = overlay_options(spec, Path::new(BUBBLE_ROOT), Path::new("/run"));
    options.extend([
        ("mode", "kernel".to_owned()),
        ("udp-port", udp_port.to_string()),
        ("listen-port", OVERLAY_PORT.to_string()),
    ]);
    Daemon::new(
        "hpk-net-daemon",
        &["/usr/local/bin/hpk-net-daemon", "overlay"],
        &options,
    )
}

/// What the overlay's daemon is told in both of its modes; `root` and `run`: where it sees the
/// bubble's folders.
pub fn overlay_options(spec: &BubbleSpec, root: &Path, run: &Path) -> Vec<(&'static str, String)> {
    let pki = |name: &str| root.join("pki").join(name).display().to_string();
    let run = |name: &str| run.join(name).display().to_string();
    vec![
        ("etcd-endpoints", spec.etcd.clone()),
        ("etcd-cacert", pki("etcd-ca.crt")),
        ("etcd-cert", pki("etcd-client.crt")),
        ("etcd-key", pki("etcd-client.key")),
        ("etcd-prefix", OVERLAY_PREFIX.into()),
        ("node", spec.node.clone()),
        ("host-ip", spec.host_ip.to_string()),
        ("subnet-file", run("flannel/subnet.env")),
        ("state-file", run("hpk/overlay.json")),
        ("vni", spec.vni.to_string()),
        ("mtu", spec.link_mtu.to_string()),
    ]
}

/// Joins pods by TAPs, those of callers on the host among them.
pub fn relay() -> Daemon {
    Daemon::new(
        "hpk-net-relay",
        &["/usr/local/bin/hpk-net-daemon", "relay", "serve"],
        &[
            ("data-dir", own("cni")),
            ("conf-dir", "/etc/cni/net.d".into()),
            ("cni-path", "/opt/cni/bin".into()),
        ],
    )
}

/// `kernel`: the running kernel's release.
pub fn kube_proxy(spec: &BubbleSpec, kernel: &str) -> Daemon {
    let mode = if proxies_by_nftables(kernel) {
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

/// Whether kube-proxy's nftables mode, which wants 5.13, is used with a kernel of this release.
pub fn proxies_by_nftables(kernel: &str) -> bool {
    kernel_version(kernel) >= (5, 13)
}

fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What a bubble's own processes take of its memory, in MiB, which is not offered to pods. On an idle
/// cluster of three nodes it is 110, and 480 on the first (anonymous memory, and each program's
/// pages once); the rest is for their growth with pods, whose own shims come on top.
const RESERVED_MIB: u64 = 200;
/// The control plane's share, on the first node only.
const CONTROL_PLANE_MIB: u64 = 600;

pub fn kubelet(spec: &BubbleSpec) -> Daemon {
    let labels: Vec<_> = spec
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let reserved = match spec.controller {
        true => RESERVED_MIB + CONTROL_PLANE_MIB,
        false => RESERVED_MIB,
    };
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
            (
                "pod-manifest-path",
                spec.store.with_file_name("manifests").display().to_string(),
            ),
            (
                "seccomp-dir",
                spec.store.with_file_name("seccomp").display().to_string(),
            ),
            ("registries", spec.registries.display().to_string()),
            ("image-policy", spec.policy.display().to_string()),
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
            ("kube-reserved", format!("memory={reserved}Mi")),
            ("node-labels", labels.join(",")),
            ("pod-log-dir", "/var/log/pods".into()),
            ("logger", "/usr/local/bin/hpk-logger".into()),
            ("address", spec.node_ip().to_string()),
            ("port", "10250".into()),
        ],
    )
    .with_env("APISERVER_CERT_LOCATION", certificate)
    .with_env("APISERVER_KEY_LOCATION", key);
    for (option, gib) in [
        ("image-max-gib", spec.image_max_gib),
        ("image-store-max-gib", spec.store_max_gib),
    ] {
        daemon
            .argv
            .extend(gib.map(|gib| format!("--{option}={gib}")));
    }
    let devices = spec.devices.iter().map(Device::argument);
    let devices = devices.map(|device| format!("--device={device}"));
    daemon.argv.extend(devices);
    let logins = spec.logins.iter().map(|path| path.display());
    let logins = logins.map(|path| format!("--registry-login={path}"));
    daemon.argv.extend(logins);
    if spec.squash_ids {
        daemon.argv.push("--squash-ids".to_owned());
    }
    // Last: what the user says goes before what stands above.
    daemon.argv.extend(spec.kubelet_options.iter().cloned());
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
            vni: 77,
            overlay: OverlayMode::Kernel { udp_port: 8473 },
            link_mtu: 1500,
            grant: Grant {
                cpus: 2,
                memory_mib: Some(4096),
            },
            devices: Vec::new(),
            labels: vec![("a".into(), "b".into())],
            store: "/home/hpc/.hpk/store".into(),
            volumes: "/home/hpc/.hpk/volumes/7".into(),
            registries: "/home/hpc/.hpk/registries.yaml".into(),
            policy: "/home/hpc/.hpk/policy.json".into(),
            logins: vec!["/home/hpc/.docker/config.json".into()],
            logs: "/home/hpc/.hpk/clusters/7/logs/n1".into(),
            proxies: vec![("https_proxy".into(), "http://p:3128".into())],
            image_max_gib: None,
            store_max_gib: None,
            step_seconds: 120,
            squash_ids: false,
            kubelet_options: Vec::new(),
        }
    }

    fn every() -> Vec<Daemon> {
        let spec = spec();
        vec![
            etcd(&spec),
            flanneld(&spec),
            net_daemon(&spec, 8473),
            relay(),
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
    fn the_nodes_capacity_is_what_slurm_granted() {
        let argv = kubelet(&spec()).argv;
        assert!(argv.contains(&"--capacity=cpu=2,memory=4096Mi,pods=110".to_owned()));
    }

    #[test]
    fn each_gpu_is_handed_to_the_kubelet() {
        let gpu = |number| Device {
            resource: "nvidia.com/gpu".into(),
            nodes: vec![format!("/dev/nvidia{number}").into()],
        };
        let devices = vec![gpu(1), gpu(3)];
        let argv = kubelet(&BubbleSpec { devices, ..spec() }).argv;
        let handed = argv
            .iter()
            .filter_map(|word| word.strip_prefix("--device="));
        assert!(handed.eq(["nvidia.com/gpu=/dev/nvidia1", "nvidia.com/gpu=/dev/nvidia3"]));
    }

    #[test]
    fn the_control_planes_memory_is_not_offered_to_pods() {
        let reserved = |controller| {
            let argv = kubelet(&BubbleSpec {
                controller,
                ..spec()
            })
            .argv;
            let option = argv
                .iter()
                .find_map(|word| word.strip_prefix("--kube-reserved="));
            option.unwrap().to_owned()
        };
        assert_eq!(reserved(false), format!("memory={RESERVED_MIB}Mi"));
        let both = RESERVED_MIB + CONTROL_PLANE_MIB;
        assert_eq!(reserved(true), format!("memory={both}Mi"));
    }

    #[test]
    fn an_old_kernel_gets_the_iptables_proxy() {
        let mode = |kernel| kube_proxy(&spec(), kernel).argv.join(" ");
        assert!(mode("4.18.0-553.el8").contains("--proxy-mode=iptables"));
        assert!(mode("5.14.0-427.el9").contains("--proxy-mode=nftables"));
        assert!(mode("6.18.44-x").contains("--proxy-mode=nftables"));
    }
}
