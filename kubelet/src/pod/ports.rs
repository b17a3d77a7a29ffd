//! Ports of the node that pods ask for (`hostPort`): each can be one pod's only. Pure.
//!
//! Source: k8s.io/kube-scheduler, plugin NodePorts, which the stock kubelet asks at admission, too.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::record::Verdict;
use super::restart::{Role, init_role};

/// Addresses of either family that stand for all of them.
const EVERY_ADDRESS: [&str; 2] = ["0.0.0.0", "::"];

/// A port of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    protocol: String,
    address: String,
    port: i32,
}

impl HostPort {
    fn clashes(&self, other: &Self) -> bool {
        let is_every = |one: &Self| EVERY_ADDRESS.contains(&one.address.as_str());
        (&self.protocol, self.port) == (&other.protocol, other.port)
            && (self.address == other.address || is_every(self) || is_every(other))
    }
}

/// Those of a pod's containers and sidecars.
pub fn host_ports(spec: &PodSpec) -> impl Iterator<Item = HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| init_role(container) == Role::Sidecar);
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(of_container)
}

fn of_container(container: &Container) -> impl Iterator<Item = HostPort> {
    let ports = container.ports.iter().flatten();
    ports.filter_map(|port| {
        Some(HostPort {
            port: port.host_port.filter(|port| *port > 0)?,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            address: port
                .host_ip
                .clone()
                .filter(|address| !address.is_empty())
                .unwrap_or_else(|| EVERY_ADDRESS[0].to_owned()),
        })
    })
}

/// Why the node can't take a pod: another has one of its ports.
pub fn refuse(spec: &PodSpec, taken: &[HostPort]) -> Option<Verdict> {
    let clash = host_ports(spec).any(|port| taken.iter().any(|other| port.clashes(other)));
    clash.then(|| Verdict {
        reason: "NodePorts".to_owned(),
        message: "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(port: serde_json::Value) -> PodSpec {
        serde_json::from_value(json!({"containers": [{"name": "c", "ports": [port]}]}))
            .expect("spec")
    }

    fn clash(one: serde_json::Value, other: serde_json::Value) -> bool {
        let taken: Vec<HostPort> = host_ports(&spec(one)).collect();
        refuse(&spec(other), &taken).is_some()
    }

    #[test]
    fn a_port_of_the_node_is_one_pods_only() {
        let port = |port: i32| json!({"containerPort": 80, "hostPort": port});
        assert!(clash(port(8080), port(8080)));
        assert!(!clash(port(8080), port(8081)));
        assert!(!clash(
            json!({"containerPort": 80}),
            json!({"containerPort": 80})
        ));
        let udp = json!({"containerPort": 80, "hostPort": 8080, "protocol": "UDP"});
        assert!(!clash(port(8080), udp));
        let at = |address: &str| json!({"containerPort": 80, "hostPort": 8080, "hostIP": address});
        assert!(clash(port(8080), at("10.0.0.1")));
        assert!(clash(at("10.0.0.1"), at("10.0.0.1")));
        assert!(!clash(at("10.0.0.1"), at("10.0.0.2")));
    }

    #[test]
    fn a_sidecars_ports_count_and_an_init_containers_do_not() {
        let with = |policy: serde_json::Value| -> PodSpec {
            let ports = json!([{"containerPort": 80, "hostPort": 8080}]);
            serde_json::from_value(json!({"containers": [], "initContainers": [
                {"name": "i", "restartPolicy": policy, "ports": ports}]}))
            .expect("spec")
        };
        assert_eq!(host_ports(&with(json!("Always"))).count(), 1);
        assert_eq!(host_ports(&with(json!(null))).count(), 0);
    }
}
