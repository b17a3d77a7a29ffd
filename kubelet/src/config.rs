//! The command line, parsed and validated. Everything after this file works on `Config` only.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use k8s_openapi::jiff::SignedDuration;
use thiserror::Error;

use crate::devices::inventory::{self, Inventory};
use crate::eviction::threshold::{self, Threshold};
use crate::images::plan::Limits;
use crate::quantity::{self, Quantity};
use crate::text;

/// The kubelet version a node reports: the Kubernetes it speaks, then HPK's own (semver 2, pre-release part).
pub const KUBELET_VERSION: &str = concat!("v1.36.3-hpk.", env!("CARGO_PKG_VERSION"));

/// A Kubernetes node agent that needs nothing but CNI plugins and a runtime v2 shim.
#[derive(Debug, Clone, Parser)]
#[command(name = "hpk-kubelet", version, args_override_self = true)]
pub struct Args {
    /// Credentials and address of the API server.
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// This node's name; the credentials must be those of `system:node:NAME`.
    #[arg(long)]
    pub node_name: String,
    /// The node's InternalIP; several, comma separated, in order of preference.
    #[arg(long, value_delimiter = ',', required = true)]
    pub node_ip: Vec<IpAddr>,
    /// Volumes and container layers (node-local, big).
    #[arg(long, default_value = "/var/lib/hpk/kubelet")]
    pub root_dir: PathBuf,
    /// Bundles, sockets, pods' state files (lives as long as the node does).
    #[arg(long, default_value = "/run/hpk")]
    pub run_dir: PathBuf,
    /// Where network namespaces are pinned.
    #[arg(long, default_value = "/run/netns")]
    pub netns_dir: PathBuf,
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Plugin folders, comma separated.
    #[arg(long, value_delimiter = ',', default_value = "/opt/cni/bin")]
    pub cni_bin_dir: Vec<PathBuf>,
    #[arg(long, default_value = "/var/lib/hpk/cni/cache")]
    pub cni_cache_dir: PathBuf,
    /// A runtime v2 shim binary (`containerd-shim-…-v2`).
    #[arg(long, default_value = "/usr/local/bin/containerd-shim-hpk-v2")]
    pub runtime: PathBuf,
    /// The sandbox's only program.
    #[arg(long, default_value = "/usr/local/bin/hpk-pause")]
    pub pause_binary: PathBuf,
    /// Squashed images, shared by all nodes of the user.
    #[arg(long)]
    pub image_store: PathBuf,
    /// Registries and mirrors, in K3s's `registries.yaml` form.
    #[arg(long)]
    pub registries: Option<PathBuf>,
    /// Which images may be taken, in the form of containers-policy.json(5); one that isn't there takes all.
    #[arg(long)]
    pub image_policy: Option<PathBuf>,
    /// A file with logins at registries, in the form of containers-auth.json(5): tried after a pod's own pull secrets.
    /// Repeatable, the first of most weight.
    #[arg(long)]
    pub registry_login: Vec<PathBuf>,
    /// GiB that the image store may grow to before images that nobody uses leave it.
    #[arg(long, value_parser = store_bytes)]
    pub image_store_max_gib: Option<u64>,
    /// GiB that one image may unpack to.
    #[arg(long, env = hpk_images::limits::SETTING, default_value = "128")]
    pub image_max_gib: hpk_images::Limits,
    #[arg(long, value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The resolver configuration that pods with dnsPolicy Default get.
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Run containers as root where their users aren't mapped on this node, unless their pods say no.
    #[arg(long)]
    pub squash_ids: bool,
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// What the node offers: `cpu=2,memory=4Gi,pods=110`.
    #[arg(long, value_delimiter = ',')]
    pub capacity: Vec<String>,
    /// A device that the node offers: an extended resource's name, and the device's nodes, its own first:
    /// `nvidia.com/gpu=/dev/nvidia0`. Repeatable.
    #[arg(long, value_name = "RESOURCE=NODE[,NODE…]")]
    pub device: Vec<String>,
    /// What of the capacity is kept from pods, for the node's own daemons: `memory=800Mi,…`.
    #[arg(long, value_delimiter = ',')]
    pub kube_reserved: Vec<String>,
    /// Labels to set on the node: `k=v,…`.
    #[arg(long, value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Sysctls that pods may set beside the safe ones; a pattern may end in `*`.
    #[arg(long, value_delimiter = ',')]
    pub allowed_unsafe_sysctls: Vec<String>,
    #[arg(long, default_value = "/var/log/pods")]
    pub pod_log_dir: PathBuf,
    /// The `binary://` logger that writes CRI logs.
    #[arg(long, default_value = "/usr/local/bin/hpk-logger")]
    pub logger: PathBuf,
    /// The seccomp profile RuntimeDefault, in the form that container engines share (containers-common).
    #[arg(long, default_value = "/usr/share/containers/seccomp.json")]
    pub seccomp_default_profile: PathBuf,
    /// Seccomp profiles of type Localhost.
    #[arg(long, default_value = "/var/lib/kubelet/seccomp")]
    pub seccomp_dir: PathBuf,
    /// Percent of the image store's disk in use, from which on images that nobody uses go; 100: never.
    #[arg(long, default_value_t = 85, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_high_threshold: u8,
    /// Percent down to which they go.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_low_threshold: u8,
    /// An image goes no sooner after its last use.
    #[arg(long, default_value = "2m", value_parser = text::parse_duration)]
    pub minimum_image_ttl_duration: Duration,
    /// An image that nobody has used for so long goes in any case; 0s: never.
    #[arg(long, default_value = "0s", value_parser = text::parse_duration)]
    pub image_maximum_gc_age: Duration,
    /// Of what less must never be left: memory.available, nodefs.available, nodefs.inodesFree, pid.available.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%"
    )]
    pub eviction_hard: Vec<String>,
    /// How long a condition of pressure outlasts the pressure.
    #[arg(long, default_value = "5m", value_parser = text::parse_duration)]
    pub eviction_pressure_transition_period: Duration,
    /// A folder of manifests, whose pods run here without an API server.
    #[arg(long)]
    pub pod_manifest_path: Option<PathBuf>,
    /// Between two looks at that folder.
    #[arg(long, default_value = "20s", value_parser = text::parse_duration)]
    pub file_check_frequency: Duration,
    /// Bytes after which a container's log is rotated.
    #[arg(long, default_value_t = 10 * 1024 * 1024)]
    pub container_log_max_size: u64,
    /// Log files kept per container.
    #[arg(long, default_value_t = 5)]
    pub container_log_max_files: u32,
    /// Listening address of the HTTPS server; the first --node-ip unless given.
    #[arg(long)]
    pub address: Option<IpAddr>,
    #[arg(long, default_value_t = 10250)]
    pub port: u16,
}

/// A command line that can't be honoured.
#[derive(Debug, Error)]
pub enum Error {
    #[error("--{flag} wants KEY=VALUE, got {value:?}")]
    NotAPair { flag: &'static str, value: String },
    #[error("--{flag} {resource}")]
    Quantity {
        flag: &'static str,
        resource: String,
        #[source]
        source: quantity::Error,
    },
    #[error(transparent)]
    Device(#[from] inventory::Error),
    #[error("--capacity={resource}: its devices are counted, which --device names")]
    CountedTwice { resource: String },
    #[error("--kube-reserved: {resource} is no part of the node's capacity")]
    Unreservable { resource: String },
    #[error("--node-labels: {label:?} is in a namespace that NodeRestriction keeps from nodes")]
    RestrictedLabel { label: String },
    #[error("--eviction-hard")]
    Eviction(#[from] threshold::Error),
    #[error("--image-gc-low-threshold={low} is not below --image-gc-high-threshold={high}")]
    ImageThresholds { low: u8, high: u8 },
    #[error("--file-check-frequency=0s is no time to wait")]
    FileCheck,
    #[error("--eviction-pressure-transition-period={0:?} is too long")]
    Transition(Duration),
    #[error("--tls-cert-file, --tls-private-key-file and --client-ca-file go together")]
    IncompleteTls,
}

/// Validated configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub args: Args,
    pub capacity: BTreeMap<String, Quantity>,
    pub devices: Inventory,
    /// Of the capacity, kept from pods.
    pub reserved: BTreeMap<String, Quantity>,
    pub labels: BTreeMap<String, String>,
    pub eviction_hard: Vec<Threshold>,
    /// How long a condition outlasts its threshold.
    pub pressure_transition: SignedDuration,
}

impl Config {
    /// Checks what clap can't: pairs, quantities, labels, TLS files.
    pub fn new(args: Args) -> Result<Self, Error> {
        let capacity = parse_quantities("capacity", &args.capacity)?;
        let devices = Inventory::parse(&args.device)?;
        if let Some(resource) = capacity.keys().find(|name| devices.ids(name).is_some()) {
            return Err(Error::CountedTwice {
                resource: resource.clone(),
            });
        }
        let reserved = parse_quantities("kube-reserved", &args.kube_reserved)?;
        if let Some((name, quantity)) = reserved
            .iter()
            .find(|(name, part)| **part < Quantity::default() || !capacity.contains_key(*name))
        {
            return Err(Error::Unreservable {
                resource: format!("{name}={}", quantity.to_api().0),
            });
        }
        let labels = parse_pairs("node-labels", &args.node_labels)?;
        if let Some(label) = labels.keys().find(|label| !may_set_label(label)) {
            return Err(Error::RestrictedLabel {
                label: label.clone(),
            });
        }
        let tls = [
            &args.tls_cert_file,
            &args.tls_private_key_file,
            &args.client_ca_file,
        ];
        let given = tls.iter().filter(|file| file.is_some()).count();
        if given != 0 && given != tls.len() {
            return Err(Error::IncompleteTls);
        }
        let (low, high) = (args.image_gc_low_threshold, args.image_gc_high_threshold);
        if low >= high {
            return Err(Error::ImageThresholds { low, high });
        }
        if args.file_check_frequency.is_zero() {
            return Err(Error::FileCheck);
        }
        let given = args.eviction_hard.iter().filter(|text| !text.is_empty());
        let eviction_hard: Result<_, _> = given.map(|text| Threshold::parse(text)).collect();
        let transition = args.eviction_pressure_transition_period;
        Ok(Self {
            capacity,
            devices,
            reserved,
            labels,
            eviction_hard: eviction_hard?,
            pressure_transition: SignedDuration::try_from(transition)
                .map_err(|_| Error::Transition(transition))?,
            args,
        })
    }

    /// When images go.
    pub fn image_limits(&self) -> Limits {
        Limits {
            high: self.args.image_gc_high_threshold,
            low: self.args.image_gc_low_threshold,
            min_age: self.args.minimum_image_ttl_duration,
            max_age: self.args.image_maximum_gc_age,
        }
    }
}

fn parse_quantities(
    flag: &'static str,
    pairs: &[String],
) -> Result<BTreeMap<String, Quantity>, Error> {
    parse_pairs(flag, pairs)?
        .into_iter()
        .map(|(resource, value)| match Quantity::parse(&value) {
            Ok(quantity) => Ok((resource, quantity)),
            Err(source) => Err(Error::Quantity {
                flag,
                resource,
                source,
            }),
        })
        .collect()
}

/// GiB as bytes.
fn store_bytes(text: &str) -> Result<u64, hpk_images::limits::SettingError> {
    hpk_images::limits::gib("--image-store-max-gib", text)
}

fn parse_pairs(flag: &'static str, pairs: &[String]) -> Result<BTreeMap<String, String>, Error> {
    pairs
        .iter()
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Error::NotAPair {
                flag,
                value: pair.clone(),
            }),
        })
        .collect()
}

/// Labels a kubelet may set on its own node (admission plugin NodeRestriction): any outside
/// `kubernetes.io` and `k8s.io`, and a short list inside.
fn may_set_label(label: &str) -> bool {
    let Some((prefix, _)) = label.split_once('/') else {
        return true;
    };
    let inside = |domain: &str| {
        prefix == domain
            || prefix
                .strip_suffix(domain)
                .is_some_and(|p| p.ends_with('.'))
    };
    if !inside("kubernetes.io") && !inside("k8s.io") {
        return true;
    }
    const ALLOWED: &[&str] = &[
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    ALLOWED.contains(&label)
        || ["kubelet.kubernetes.io", "node.kubernetes.io"]
            .iter()
            .any(|ns| prefix == *ns || prefix.ends_with(&format!(".{ns}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(extra: &[&str]) -> Args {
        let base = [
            "hpk-kubelet",
            "--kubeconfig=/k",
            "--node-name=n1",
            "--node-ip=10.0.0.1",
            "--image-store=/s",
        ];
        Args::parse_from(base.iter().chain(extra))
    }

    #[test]
    fn capacity_and_labels_are_parsed_as_pairs() {
        let config = Config::new(args(&[
            "--capacity=cpu=2,memory=4Gi,pods=110",
            "--node-labels=slurm.hpk.io/job=7",
        ]))
        .expect("valid");
        assert_eq!(config.capacity["memory"].value(), 4 << 30);
        assert_eq!(config.labels["slurm.hpk.io/job"], "7");
    }

    #[test]
    fn what_the_node_does_not_have_cannot_be_reserved() {
        for part in ["--kube-reserved=memory=1Gi", "--kube-reserved=cpu=-1"] {
            let refused = Config::new(args(&["--capacity=cpu=2", part]));
            assert!(matches!(refused, Err(Error::Unreservable { .. })), "{part}");
        }
    }

    #[test]
    fn a_resource_of_devices_has_no_capacity_beside_them() {
        let device = "--device=nvidia.com/gpu=/dev/nvidia0";
        assert!(Config::new(args(&[device, "--capacity=cpu=2"])).is_ok());
        let refused = Config::new(args(&[device, "--capacity=nvidia.com/gpu=2"]));
        assert!(matches!(refused, Err(Error::CountedTwice { .. })));
    }

    #[test]
    fn a_label_kept_from_nodes_is_refused() {
        let refused = Config::new(args(&["--node-labels=node-role.kubernetes.io/master=x"]));
        assert!(matches!(refused, Err(Error::RestrictedLabel { .. })));
    }

    #[test]
    fn half_of_the_tls_files_is_refused() {
        let refused = Config::new(args(&["--tls-cert-file=/c"]));
        assert!(matches!(refused, Err(Error::IncompleteTls)));
    }

    #[test]
    fn the_kubelet_version_starts_with_the_kubernetes_version() {
        assert!(KUBELET_VERSION.starts_with("v1.36.3-hpk."));
    }
}
