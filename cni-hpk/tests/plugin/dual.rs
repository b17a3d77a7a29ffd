//! IPv6, alone and beside IPv4.

use serde_json::{Value, json};

use super::support::{Call, Running, inside, json_of, leftovers, netns, sh, succeeds, wait_for};

fn call(command: &'static str, id: &str) -> Call {
    let mut call = Call::new(command, id);
    call.conf["subnet"] = json!(["10.244.3.0/24", "fd00:3::/64"]);
    call.conf["network"] = json!(["10.244.0.0/16", "fd00::/16"]);
    call
}

fn add(id: &str) -> Value {
    netns(id);
    call("ADD", id).run().unwrap()
}

/// The pod's IPv6 address, as `ip` sees it: usable at once.
fn address6(id: &str) -> String {
    let links = json_of(&format!(
        "ip -n {id} -j -6 address show dev eth0 scope global"
    ));
    let address = &links[0]["addr_info"][0];
    assert!(address.get("tentative").is_none(), "{address}");
    address["local"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn all_ipv6_traffic_goes_through_the_gateway_and_at_once() {
    inside(
        "dual::all_ipv6_traffic_goes_through_the_gateway_and_at_once",
        || {
            let result = add("a");
            assert_eq!(result["ips"].as_array().unwrap().len(), 2);
            assert_eq!(result["ips"][1]["gateway"], "fd00:3::1");
            add("b");
            let (a, b) = (address6("a"), address6("b"));
            assert_eq!(result["ips"][1]["address"], format!("{a}/64"));
            // From outside first: the bridge must find the pod by itself.
            assert!(succeeds(&format!("ping -6 -c1 -W1 {a}")), "bubble to pod");
            assert!(succeeds(&format!("ip netns exec a ping -6 -c1 -W1 {b}")));
            let routes = json_of("ip -n a -6 -j route");
            let via = |destination: &str| {
                let mut routes = routes.as_array().unwrap().iter();
                routes.find(|it| it["dst"] == destination).unwrap()["gateway"].clone()
            };
            assert_eq!(
                (via("fd00:3::/64"), via("default")),
                (json!("fd00:3::1"), json!("fd00:3::1"))
            );
            // The kernel would send redirects; a second of traffic finds none taken.
            assert!(succeeds(&format!(
                "ip netns exec a ping -6 -i 0.1 -c10 -W1 {b}"
            )));
            let cached = sh("ip -n a -6 route show cached");
            assert!(!cached.contains(&b), "redirected: {cached}");
            let mut check = call("CHECK", "a");
            check.conf["prevResult"] = result;
            check.run().unwrap();
            for id in ["a", "b"] {
                call("DEL", id).run().unwrap();
            }
            assert_eq!(leftovers(), "");
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn an_ipv6_service_of_the_same_node_keeps_the_source() {
    inside(
        "dual::an_ipv6_service_of_the_same_node_keeps_the_source",
        || {
            add("a");
            add("b");
            let (a, b) = (address6("a"), address6("b"));
            std::fs::write(
                "/run/services",
                format!(
                    "table ip6 services {{ chain pre {{ type nat hook prerouting priority -100;
                   ip6 daddr fd43::1 tcp dport 80 dnat to [{b}]:8080; }}\n}}"
                ),
            )
            .unwrap();
            sh("nft -f /run/services");
            let _server = Running::start(
                "ip netns exec b python3 -c '
import socket
s = socket.socket(socket.AF_INET6); s.bind((\"::\", 8080)); s.listen()
while True:
    c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()'",
            );
            wait_for("the server", || {
                succeeds("ip netns exec b ss -ltn | grep -q :8080")
            });
            let seen = sh(
                "ip netns exec a python3 -c 'import socket; print(socket.create_connection((\"fd43::1\", 80), 3).recv(99).decode())'",
            );
            assert_eq!(seen.trim(), a);
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn only_ipv6_that_leaves_the_pod_network_is_masqueraded() {
    inside(
        "dual::only_ipv6_that_leaves_the_pod_network_is_masqueraded",
        || {
            add("a");
            sh("ip netns add world; ip link add up0 type veth peer name w0 netns world");
            sh("ip address add 2001:db8::1/64 dev up0 nodad; ip link set up0 up");
            sh("ip -n world address add 2001:db8::2/64 dev w0 nodad; ip -n world link set w0 up");
            sh(
                "ip -n world address add fd00:9::1/128 dev w0 nodad; ip route add fd00:9::/64 via 2001:db8::2",
            );
            wait_for("the world", || succeeds("ping -6 -c1 -W1 2001:db8::2"));
            assert!(
                succeeds("ip netns exec a ping -6 -c1 -W2 2001:db8::2"),
                "outside"
            );
            assert!(
                !succeeds("ip netns exec a ping -6 -c1 -W1 fd00:9::1"),
                "another pod would see the node's"
            );
            assert_eq!(
                sh("nft list table ip6 hpk | grep -c masquerade").trim(),
                "1"
            );
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn flannels_leases_of_both_families_are_taken_and_ipv6_goes_alone_too() {
    inside(
        "dual::flannels_leases_of_both_families_are_taken_and_ipv6_goes_alone_too",
        || {
            let add = Call::new("ADD", "a");
            netns("a");
            let v6 = "FLANNEL_IPV6_NETWORK=fd00::/16\nFLANNEL_IPV6_SUBNET=fd00:7::1/64\n";
            std::fs::write("/run/v6", v6).unwrap();
            sh("cat /run/v6 >> /run/subnet.env");
            add.run().unwrap();
            assert!(address6("a").starts_with("fd00:7::"));
            let del = Call {
                command: "DEL",
                ..add.clone()
            };
            del.run().unwrap();
            sh("sed -i '/FLANNEL_NETWORK/d; /FLANNEL_SUBNET/d' /run/subnet.env");
            let result = add.run().unwrap();
            assert_eq!(result["ips"].as_array().unwrap().len(), 1);
            assert!(succeeds(&format!("ping -6 -c1 -W1 {}", address6("a"))));
            del.run().unwrap();
            assert_eq!(leftovers(), "");
        },
    );
}
