//! The pod network's scenarios (issue 4), all in namespaces of the testbed's hosts.
//!
//! Layout:
//! - `traffic` – iperf3 and sockperf between two ends; `answers` – what they print,
//! - `one_node` – pod to pod on one node: cni-hpk beside the stock plugins,
//! - `two_hosts` – pod to pod across two hosts, with `bubbles` (jobs in each mode of the
//!   overlay), `vxlan` (the rootful reference) and `offloads` (links as on a wire),
//! - `plugins` – ADD and DEL.

mod answers;
mod bubbles;
mod offloads;
mod one_node;
mod plugins;
mod traffic;
mod two_hosts;
mod vxlan;

use super::scenario::Scenario;
use crate::testbed::Testbed;

/// The testbed's hosts that take part.
pub const HOSTS: [&str; 2] = ["node1", "node2"];

/// Begins the name of whatever a scenario makes on a host.
const PREFIX: &str = "hpkbench";

pub fn scenarios(testbed: &Testbed) -> Vec<Box<dyn Scenario>> {
    vec![
        Box::new(one_node::OneNode::new(testbed)),
        Box::new(two_hosts::TwoHosts::new(testbed)),
        Box::new(plugins::Plugins::new(testbed)),
    ]
}

/// A shell line that removes every network namespace of ours whose name begins so.
fn remove_namespaces(prefix: &str) -> String {
    format!(
        "for name in $(ip netns list | awk '{{print $1}}' | grep '^{prefix}' || true); do ip netns del $name; done"
    )
}
