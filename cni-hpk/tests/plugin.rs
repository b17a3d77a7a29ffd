//! The plugin on a real kernel.
//!
//! `cargo test -p cni-hpk -- --ignored`; as an ordinary user too, where user
//! namespaces are allowed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "plugin/asked.rs"]
mod asked;
#[path = "plugin/chained.rs"]
mod chained;
#[path = "plugin/dual.rs"]
mod dual;
#[path = "plugin/faults.rs"]
mod faults;
mod support;

use serde_json::{Value, json};
use support::{Call, Running, address, inside, json_of, netns, sh, succeeds, wait_for};

fn add(id: &str) -> Value {
    netns(id);
    Call::new("ADD", id).run().unwrap()
}

fn check(id: &str, result: &Value) -> Result<Value, Value> {
    let mut call = Call::new("CHECK", id);
    call.conf["prevResult"] = result.clone();
    call.run()
}

fn host_ends() -> usize {
    json_of("ip -j link show type veth")
        .as_array()
        .unwrap()
        .len()
}

fn leases() -> usize {
    sh("find /run/cni/networks -name '10.*' 2>/dev/null | wc -l")
        .trim()
        .parse()
        .unwrap()
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn add_gives_an_address_on_an_isolated_port_and_routes_all_through_the_bubble() {
    inside(
        "add_gives_an_address_on_an_isolated_port_and_routes_all_through_the_bubble",
        || {
            let result = add("a");
            assert_eq!(result["cniVersion"], "1.0.0");
            let ip = address("a");
            assert!(ip.starts_with("10.244.3."));
            assert_eq!(result["ips"][0]["address"], format!("{ip}/24"));
            let host = result["interfaces"][1]["name"].as_str().unwrap();
            let port = json_of(&format!("ip -d -j link show dev {host}"));
            assert_eq!(port[0]["linkinfo"]["info_slave_data"]["isolated"], true);
            assert_eq!(port[0]["mtu"], 1450);
            let bridge = json_of("ip -j -4 address show dev hpk-bridge");
            assert_eq!(bridge[0]["addr_info"][0]["local"], "10.244.3.1");
            let routes = json_of("ip -n a -j route");
            let own = |route: &&Value| route["dst"] == "10.244.3.0/24";
            let own = routes.as_array().unwrap().iter().find(own).unwrap();
            assert_eq!(own["gateway"], "10.244.3.1");
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn a_second_add_is_refused_and_leaves_the_first_whole() {
    inside("a_second_add_is_refused_and_leaves_the_first_whole", || {
        let result = add("a");
        let error = Call::new("ADD", "a").run().unwrap_err();
        assert!(error["msg"].is_string());
        check("a", &result).unwrap();
        assert_eq!(leases(), 1);
    });
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn del_may_come_twice_without_a_namespace_or_a_lease() {
    inside("del_may_come_twice_without_a_namespace_or_a_lease", || {
        add("a");
        sh("umount /run/netns/a; rm /run/netns/a");
        let mut del = Call::new("DEL", "a");
        del.netns = None;
        sh("mv /run/subnet.env /run/gone");
        del.run().unwrap();
        del.run().unwrap();
        Call::new("DEL", "never-added").run().unwrap();
        assert_eq!((host_ends(), leases()), (0, 0));
        assert!(succeeds("ip link show dev hpk-bridge"), "the bridge stays");
    });
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn check_sees_what_was_taken_away() {
    inside("check_sees_what_was_taken_away", || {
        let result = add("a");
        check("a", &result).unwrap();
        for (breakage, word) in [
            ("ip -n a route del default", "0.0.0.0/0"),
            ("nft delete table ip hpk", "bubble"),
            (
                "bridge link set dev $(ip -br link show type veth | cut -d@ -f1) isolated off",
                "port",
            ),
            ("ip -n a address flush dev eth0", "no address"),
        ] {
            let _ = Call::new("DEL", "a").run();
            let result = Call::new("ADD", "a").run().unwrap();
            check("a", &result).unwrap();
            sh(breakage);
            let error = check("a", &result).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(word), "{breakage}: {text}");
        }
    });
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn an_add_that_fails_leaves_nothing_behind() {
    inside("an_add_that_fails_leaves_nothing_behind", || {
        netns("a");
        sh("ip -n a link add eth0 type bridge");
        let error = Call::new("ADD", "a").run().unwrap_err();
        assert!(error["msg"].as_str().unwrap().contains("eth0"));
        assert_eq!((host_ends(), leases()), (0, 0));
        assert_eq!(sh("ls /run/cni/attachments").trim(), "");
        let error = Call::new("ADD", "nowhere").run().unwrap_err();
        assert_eq!(error["code"], 3, "unknown container: {error}");
    });
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn a_service_on_the_same_node_works_without_br_netfilter_and_keeps_the_source() {
    inside(
        "a_service_on_the_same_node_works_without_br_netfilter_and_keeps_the_source",
        || {
            add("a");
            add("b");
            let (a, b) = (address("a"), address("b"));
            // What kube-proxy does for two Services, one of them a's own.
            std::fs::write(
                "/run/services",
                format!(
                    "table ip services {{
                       chain pre {{ type nat hook prerouting priority -100;
                         ip daddr 10.43.0.1 tcp dport 80 dnat to {b}:8080;
                         ip daddr 10.43.0.2 tcp dport 80 dnat to {a}:8080; }}
                       chain post {{ type nat hook postrouting priority 100;
                         ip saddr {a} ip daddr {a} masquerade; }}
                     }}"
                ),
            )
            .unwrap();
            sh("nft -f /run/services");
            assert!(succeeds(&format!("ip netns exec a ping -c1 -W2 {b}")));
            let source_of = |server: &str, service: &str| {
                // ss on the server's side shows whom it sees.
                let _server = Running::start(&format!(
                    "ip netns exec {server} python3 -c '
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((\"0.0.0.0\", 8080)); s.listen()
while True:
    c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()'"
                ));
                wait_for("the server", || {
                    succeeds(&format!("ip netns exec {server} ss -ltn | grep -q :8080"))
                });
                sh(&format!(
                    "ip netns exec a python3 -c 'import socket; print(socket.create_connection((\"{service}\", 80), 3).recv(99).decode())'"
                ))
                .trim()
                .to_owned()
            };
            assert_eq!(source_of("b", "10.43.0.1"), a);
            assert_eq!(source_of("a", "10.43.0.2"), "10.244.3.1", "hairpin");
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn only_what_leaves_the_pod_network_is_masqueraded() {
    inside("only_what_leaves_the_pod_network_is_masqueraded", || {
        add("a");
        // A world outside that knows no pods, and another bubble that does.
        sh("ip netns add world; ip link add up0 type veth peer name w0 netns world");
        sh("ip address add 192.0.2.1/24 dev up0; ip link set up0 up");
        sh("ip -n world address add 192.0.2.2/24 dev w0; ip -n world link set w0 up");
        sh(
            "ip -n world address add 10.244.9.1/32 dev w0; ip route add 10.244.9.0/24 via 192.0.2.2",
        );
        assert!(
            succeeds("ip netns exec a ping -c1 -W2 192.0.2.2"),
            "outside"
        );
        assert!(
            !succeeds("ip netns exec a ping -c1 -W1 10.244.9.1"),
            "another pod would see the node's address"
        );
        sh("ip -n world route add 10.244.3.0/24 via 192.0.2.1");
        assert!(succeeds("ip netns exec a ping -c1 -W2 10.244.9.1"));
    });
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn twenty_at_once_leak_nothing_and_write_the_nat_rule_once() {
    inside(
        "twenty_at_once_leak_nothing_and_write_the_nat_rule_once",
        || {
            let ids: Vec<String> = (0..20).map(|number| format!("pod{number}")).collect();
            for id in &ids {
                netns(id);
            }
            std::thread::scope(|scope| {
                for id in &ids {
                    scope.spawn(move || Call::new("ADD", id).run().unwrap());
                }
            });
            let mut addresses: Vec<String> = ids.iter().map(|id| address(id)).collect();
            addresses.sort();
            addresses.dedup();
            assert_eq!((addresses.len(), host_ends(), leases()), (20, 20, 20));
            assert_eq!(
                sh("nft list ruleset | grep -c 'masquerade.*hpk:'").trim(),
                "1"
            );
            std::thread::scope(|scope| {
                for id in &ids {
                    scope.spawn(move || Call::new("DEL", id).run().unwrap());
                }
            });
            assert_eq!((host_ends(), leases()), (0, 0));
            assert_eq!(sh("ls /run/cni/attachments").trim(), "");
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn gc_removes_what_is_not_valid_and_keeps_the_rest() {
    inside("gc_removes_what_is_not_valid_and_keeps_the_rest", || {
        let kept = add("kept");
        add("lost");
        sh("umount /run/netns/lost; rm /run/netns/lost");
        let mut gc = Call::new("GC", "");
        gc.conf["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
        gc.run().unwrap();
        assert_eq!((host_ends(), leases()), (1, 1));
        check("kept", &kept).unwrap();
    });
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn a_new_lease_moves_the_bridge_and_del_still_knows_the_old_one() {
    inside(
        "a_new_lease_moves_the_bridge_and_del_still_knows_the_old_one",
        || {
            add("a");
            let mut call = Call::new("ADD", "b");
            netns("b");
            sh("sed -i s/10.244.3.1/10.244.7.1/ /run/subnet.env");
            call.run().unwrap();
            assert!(address("b").starts_with("10.244.7."));
            let bridge = json_of("ip -j -4 address show dev hpk-bridge");
            assert_eq!(bridge[0]["addr_info"].as_array().unwrap().len(), 1);
            call.command = "DEL";
            call.run().unwrap();
            call.id = "a".to_owned();
            call.run().unwrap();
            assert_eq!((host_ends(), leases()), (0, 0));
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn status_says_whether_flannel_has_leased_a_subnet() {
    inside("status_says_whether_flannel_has_leased_a_subnet", || {
        let status = Call::new("STATUS", "");
        status.run().unwrap();
        sh("rm /run/subnet.env");
        assert_eq!(status.run().unwrap_err()["code"], 50);
        let error = Call {
            command: "ADD",
            conf: status.conf,
            ..Call::new("STATUS", "x")
        };
        sh("rm -f /run/subnet.env");
        assert_eq!(error.run().unwrap_err()["code"], 11, "try again later");
    });
}
