//! The rootful reference across two hosts: pods on a bridge, routed over a kernel VXLAN device
//! with static entries, as Flannel's backend `vxlan` sets it up.
//!
//! The device is made in the host's namespace, in which its UDP stays, and moved to a "node"
//! namespace: so nothing of the host's own changes.

use anyhow::Result;

use super::traffic::{End, Path};
use super::{HOSTS, PREFIX, remove_namespaces};
use crate::testbed::Testbed;

/// UDP port and network identifier apart from those of the jobs' overlays.
const PORT: u16 = 18472;
const VNI: u32 = 990_001;
/// Bytes: the hosts' links less VXLAN's overhead, as Flannel sets it.
const MTU: u32 = 1450;

fn prefix() -> String {
    format!("{PREFIX}-vx")
}

/// The script that sets up one of the hosts, numbered from 1.
fn script(number: usize, own: &str, other_number: usize, other: &str) -> String {
    let node = format!("{}-node", prefix());
    let pod = format!("{}-pod", prefix());
    let mac = |number: usize| format!("02:68:70:76:78:{number:02x}");
    format!(
        "set -e
         ip netns add {node}; ip netns add {pod}
         ip link add vx netns {node} type vxlan id {VNI} dstport {PORT} local {own} nolearning
         ip -n {node} link set lo up
         ip -n {pod} link set lo up
         ip -n {node} link set vx address {} mtu {MTU} up
         ip -n {node} address add 10.246.{number}.0/32 dev vx
         ip -n {node} neighbour add 10.246.{other_number}.0 lladdr {} dev vx nud permanent
         bridge -n {node} fdb append {} dev vx dst {other}
         ip -n {node} route add 10.246.{other_number}.0/24 via 10.246.{other_number}.0 dev vx onlink
         ip -n {node} link add bridge type bridge
         ip -n {node} address add 10.246.{number}.1/24 dev bridge
         ip -n {node} link set bridge mtu {MTU} up
         ip -n {node} link add pod type veth peer name eth0 netns {pod}
         ip -n {node} link set pod master bridge mtu {MTU} up
         ip -n {pod} address add 10.246.{number}.2/24 dev eth0
         ip -n {pod} link set eth0 mtu {MTU} up
         ip -n {pod} route add default via 10.246.{number}.1
         nsenter --net=/run/netns/{node} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward
             off=/proc/sys/net/bridge/bridge-nf-call-iptables; if [ -e $off ]; then echo 0 > $off; fi'",
        mac(number),
        mac(other_number),
        mac(other_number),
    )
}

/// Sets both hosts up; `addresses` are theirs.
pub fn set_up(testbed: &Testbed, addresses: &[String; 2]) -> Result<Path> {
    for (own, other) in [(0, 1), (1, 0)] {
        testbed
            .on(
                "root",
                HOSTS[own],
                script(own + 1, &addresses[own], other + 1, &addresses[other]),
            )
            .success()?;
    }
    let end = |host| End {
        host,
        enter: format!("nsenter --net=/run/netns/{}-pod ", prefix()),
    };
    Ok(Path {
        client: end(HOSTS[0]),
        server: end(HOSTS[1]),
        address: "10.246.2.2".into(),
    })
}

pub fn tear_down(testbed: &Testbed) -> Result<()> {
    for host in HOSTS {
        testbed
            .on("root", host, remove_namespaces(&prefix()))
            .success()?;
    }
    Ok(())
}
