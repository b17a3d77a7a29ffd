//! What the node says of itself. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use super::standing::Standing;
use crate::config::{Config, KUBELET_VERSION};
use crate::quantity::Quantity;

/// Pods run as root alone.
const SINGLE_ID: &str = "SingleId";
/// The label of nodes of which that is true.
const SINGLE_ID_LABEL: &str = "hpk.io/single-id";
/// What callers ask a node for before they use it, sorted. Source: k8s.io/component-helpers,
/// nodedeclaredfeatures.
const DECLARED_FEATURES: [&str; 2] = [
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
];
/// Pods may use more than their limits.
const LIMITS_NOT_ENFORCED: &str = "LimitsNotEnforced";

/// What was read from the machine.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub machine_id: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    /// Go's name of the architecture.
    pub architecture: String,
    /// Why pods can't run; ready if none.
    pub not_ready: Option<String>,
    pub standing: Standing,
    /// Controllers, of `cpu` and `memory`, of which pods' cgroups can't be made.
    pub unenforced: Vec<&'static str>,
    /// Root, which is the job's user, is the only user.
    pub single_id: bool,
    /// Bytes of the disk under the pods' files.
    pub disk: u64,
    /// Of the image store, as many as a node lists.
    pub images: Vec<ContainerImage>,
}

/// The labels a node sets on itself.
pub fn labels(config: &Config, observed: &Observed) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (
            "kubernetes.io/hostname".to_owned(),
            config.args.node_name.clone(),
        ),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        (
            "kubernetes.io/arch".to_owned(),
            observed.architecture.clone(),
        ),
        ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
        (
            "beta.kubernetes.io/arch".to_owned(),
            observed.architecture.clone(),
        ),
    ]);
    // Written also where it isn't so: a node's labels outlive the kubelet that set them.
    labels.insert(SINGLE_ID_LABEL.to_owned(), observed.single_id.to_string());
    labels.extend(config.labels.clone());
    labels
}

/// Capacity: what the command line offers, but for devices, and the disk.
pub fn capacity(config: &Config, observed: &Observed) -> BTreeMap<String, Quantity> {
    let mut capacity = config.capacity.clone();
    capacity
        .entry("pods".to_owned())
        .or_insert(Quantity::from_value(110));
    if observed.disk > 0 {
        capacity
            .entry("ephemeral-storage".to_owned())
            .or_insert(Quantity::from_value(i128::from(observed.disk)));
    }
    capacity
}

/// What of the capacity is left to pods, nothing at the least.
pub fn allocatable(config: &Config, observed: &Observed) -> BTreeMap<String, Quantity> {
    let mut allocatable = capacity(config, observed);
    for (name, reserved) in &config.reserved {
        if let Some(quantity) = allocatable.get_mut(name) {
            *quantity = (*quantity - *reserved).max(Quantity::default());
        }
    }
    allocatable
}

/// The whole object, as it is created. `old`: the conditions known, for transition times.
pub fn node(config: &Config, observed: &Observed, now: Timestamp) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(config.args.node_name.clone()),
            labels: Some(labels(config, observed)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: Some(status(config, observed, &[], now)),
    }
}

/// The node's status.
pub fn status(
    config: &Config,
    observed: &Observed,
    old: &[NodeCondition],
    now: Timestamp,
) -> NodeStatus {
    let to_api = |quantities: BTreeMap<String, Quantity>| -> BTreeMap<String, ApiQuantity> {
        let pairs = quantities.into_iter();
        pairs
            .map(|(name, quantity)| (name, quantity.to_api()))
            .collect()
    };
    // Admission doesn't count these: who has which is known (`crate::devices`).
    let with_devices = |mut quantities: BTreeMap<String, Quantity>| {
        quantities.extend(config.devices.counts());
        quantities
    };
    NodeStatus {
        addresses: Some(addresses(&config.args.node_ip, &config.args.node_name)),
        allocatable: Some(to_api(with_devices(allocatable(config, observed)))),
        capacity: Some(to_api(with_devices(capacity(config, observed)))),
        conditions: Some(conditions(observed, old, now)),
        images: Some(observed.images.clone()),
        declared_features: Some(DECLARED_FEATURES.map(str::to_owned).to_vec()),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(config.args.port),
            }),
        }),
        node_info: Some(NodeSystemInfo {
            architecture: observed.architecture.clone(),
            boot_id: observed.boot_id.clone(),
            container_runtime_version: format!("hpk://{}", env!("CARGO_PKG_VERSION")),
            kernel_version: observed.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            machine_id: observed.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: observed.os_image.clone(),
            system_uuid: observed.machine_id.clone(),
            ..NodeSystemInfo::default()
        }),
        ..NodeStatus::default()
    }
}

fn addresses(ips: &[IpAddr], name: &str) -> Vec<NodeAddress> {
    let mut addresses: Vec<NodeAddress> = ips
        .iter()
        .map(|ip| NodeAddress {
            type_: "InternalIP".to_owned(),
            address: ip.to_string(),
        })
        .collect();
    addresses.push(NodeAddress {
        type_: "Hostname".to_owned(),
        address: name.to_owned(),
    });
    addresses
}

fn conditions(observed: &Observed, old: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let condition = |kind: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let same = old
            .iter()
            .find(|condition| condition.type_ == kind && condition.status == status);
        NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: same
                .and_then(|condition| condition.last_transition_time.clone())
                .or(Some(Time(now))),
        }
    };
    let standing = &observed.standing;
    let memory = if standing.memory_pressure {
        (
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        )
    } else {
        (
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        )
    };
    let disk = if standing.disk_pressure {
        ("KubeletHasDiskPressure", "kubelet has disk pressure")
    } else {
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure")
    };
    let pids = if standing.pid_pressure {
        (
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
        )
    } else {
        (
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        )
    };
    vec![
        condition(
            "MemoryPressure",
            standing.memory_pressure,
            memory.0,
            memory.1,
        ),
        condition("DiskPressure", standing.disk_pressure, disk.0, disk.1),
        condition("PIDPressure", standing.pid_pressure, pids.0, pids.1),
        match observed.unenforced.as_slice() {
            [] => condition(
                LIMITS_NOT_ENFORCED,
                false,
                "CgroupsWritable",
                "limits of CPU and memory are enforced by cgroups",
            ),
            missing => {
                let message = format!(
                    "no cgroup of {} may be made in this job: limits are not enforced (hpk-bubble doctor says what to ask for)",
                    missing.join(" and ")
                );
                condition(LIMITS_NOT_ENFORCED, true, "CgroupsNotWritable", &message)
            }
        },
        match observed.single_id {
            false => condition(
                SINGLE_ID,
                false,
                "IdsMapped",
                "pods run as the users they ask for",
            ),
            true => condition(
                SINGLE_ID,
                true,
                "NoSubordinateIds",
                "the job's user has no subordinate ids: pods run as root alone, and those that ask for \
                 another user are refused unless annotated slurm.hpk.io/squash-ids: \"true\"",
            ),
        },
        match &observed.not_ready {
            _ if standing.shutting_down => {
                condition("Ready", false, "KubeletNotReady", "node is shutting down")
            }
            None => condition(
                "Ready",
                true,
                "KubeletReady",
                "kubelet is posting ready status",
            ),
            Some(why) => condition("Ready", false, "KubeletNotReady", why),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Args;
    use crate::devices::inventory::Inventory;
    use clap::Parser;

    fn config() -> Config {
        let args = Args::parse_from([
            "hpk-kubelet",
            "--kubeconfig=/k",
            "--node-name=n1",
            "--node-ip=10.244.1.0",
            "--image-store=/s",
            "--capacity=cpu=2,memory=4Gi",
        ]);
        Config::new(args).expect("valid")
    }

    #[test]
    fn the_node_offers_what_the_command_line_says_and_110_pods() {
        let status = status(&config(), &Observed::default(), &[], Timestamp::UNIX_EPOCH);
        let capacity = status.capacity.expect("capacity");
        assert_eq!(capacity["cpu"].0, "2");
        assert_eq!(capacity["memory"].0, "4294967296");
        assert_eq!(capacity["pods"].0, "110");
    }

    #[test]
    fn devices_are_counted() {
        let mut config = config();
        let options = ["x.test/d=/dev/a", "x.test/d=/dev/b"].map(str::to_owned);
        config.devices = Inventory::parse(&options).expect("an inventory");
        let status = status(&config, &Observed::default(), &[], Timestamp::UNIX_EPOCH);
        for quantities in [status.capacity, status.allocatable] {
            assert_eq!(quantities.expect("told")["x.test/d"].0, "2");
        }
    }

    #[test]
    fn what_is_reserved_is_no_pods() {
        let mut config = config();
        let reserve = |text: &str| {
            let quantity = Quantity::parse(text).expect("a quantity");
            BTreeMap::from([("memory".to_owned(), quantity)])
        };
        config.reserved = reserve("1Gi");
        let left = status(&config, &Observed::default(), &[], Timestamp::UNIX_EPOCH);
        let left = left.allocatable.expect("allocatable");
        assert_eq!(
            (left["memory"].0.as_str(), left["cpu"].0.as_str()),
            ("3221225472", "2")
        );
        config.reserved = reserve("5Gi");
        let none = allocatable(&config, &Observed::default());
        assert_eq!(none["memory"].value(), 0);
    }

    #[test]
    fn a_node_without_network_is_not_ready_and_says_why() {
        let observed = Observed {
            not_ready: Some("no network".to_owned()),
            ..Observed::default()
        };
        let conditions = conditions(&observed, &[], Timestamp::UNIX_EPOCH);
        let ready = conditions
            .iter()
            .find(|c| c.type_ == "Ready")
            .expect("Ready");
        assert_eq!(ready.status, "False");
        assert_eq!(ready.message.as_deref(), Some("no network"));
    }
}
