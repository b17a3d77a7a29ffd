//! The overlay between three bubbles' namespaces on one switch, with a real
//! etcd over mutual TLS. `cargo test -p cni-hpk -- --ignored`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::site::{Site, lease, start_daemon, start_etcd};
use support::{inside, json_of, sh, succeeds, wait_for};

fn reaches(from: usize, to: usize) -> bool {
    succeeds(&format!(
        "ip netns exec n{from} ping -q -c1 -W1 10.244.{to}.0"
    ))
}

fn all_reach_all() -> bool {
    (1..=3).all(|from| (1..=3).all(|to| reaches(from, to)))
}

fn routes(host: usize) -> usize {
    let routes = json_of(&format!("ip -n n{host} -j route show dev hpk-vxlan"));
    routes.as_array().unwrap().len()
}

fn device(host: usize) -> serde_json::Value {
    json_of(&format!("ip -n n{host} -d -j link show dev hpk-vxlan"))[0].clone()
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, openssl, etcd and etcdctl"]
fn bubbles_behind_different_udp_ports_reach_each_other() {
    inside(
        "bubbles_behind_different_udp_ports_reach_each_other",
        || {
            let _site = Site::new();
            wait_for("all reach all", all_reach_all);
            let device = device(1);
            assert_eq!(device["mtu"], 1450);
            assert_eq!(device["linkinfo"]["info_data"]["id"], 4242);
            assert_eq!(device["linkinfo"]["info_data"]["learning"], false);
            let state = std::fs::read_to_string("/run/state3.json").unwrap();
            let state: serde_json::Value = serde_json::from_str(&state).unwrap();
            assert_eq!(state["node_ip"], "10.244.3.0");
            // A whole frame fits, and one byte more does not.
            assert!(succeeds(
                "ip netns exec n1 ping -q -c1 -W1 -M do -s 1422 10.244.2.0"
            ));
            assert!(!succeeds(
                "ip netns exec n1 ping -q -c1 -W1 -M do -s 1423 10.244.2.0"
            ));
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, openssl, etcd and etcdctl"]
fn the_overlay_outlives_its_daemons_and_etcd() {
    inside("the_overlay_outlives_its_daemons_and_etcd", || {
        let mut site = Site::new();
        wait_for("all reach all", all_reach_all);
        let before = device(1)["ifindex"].clone();
        site.daemons[0].kill();
        site.etcd.kill();
        assert!(all_reach_all(), "without daemon and etcd");

        // One comes back before etcd does, and from another port.
        site.restart(2, 9999, 9999);
        site.daemons[0] = start_daemon(1, 8472, 8472);
        site.etcd = start_etcd();
        wait_for("the new port", || {
            sh("bridge -n n1 fdb show dev hpk-vxlan").contains("192.0.2.2 port 9999")
        });
        wait_for("all reach all again", all_reach_all);
        assert_eq!(device(1)["ifindex"], before, "the device was kept");
        assert_eq!(routes(1), 2);
    });
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, openssl, etcd and etcdctl"]
fn a_peer_that_leaves_is_forgotten_and_a_lost_device_is_made_anew() {
    inside(
        "a_peer_that_leaves_is_forgotten_and_a_lost_device_is_made_anew",
        || {
            let mut site = Site::new();
            wait_for("all reach all", all_reach_all);
            site.daemons[2].kill();
            let etcdctl = "ETCDCTL_API=3 etcdctl --endpoints https://192.0.2.254:2379 \
                           --cacert ca.pem --cert client.pem --key client.key";
            sh(&format!("{etcdctl} del /hpk/overlay/peers/10.244.3.0-24"));
            wait_for("the route to go", || routes(1) == 1 && routes(2) == 1);
            let left = sh("ip -n n1 neigh show dev hpk-vxlan; bridge -n n1 fdb show dev hpk-vxlan");
            assert!(!left.contains("0a:58:0a:f4:03:00"), "{left}");

            // Rubbish in a record cuts off nobody else.
            sh(&format!(
                "{etcdctl} put /hpk/overlay/peers/10.244.9.0-24 rubbish"
            ));
            sh("ip -n n1 link del hpk-vxlan");
            site.restart(1, 8472, 8472);
            wait_for("the device", || reaches(1, 2));

            // Another lease: the daemon ends, and the next one moves.
            lease(2, 7);
            site.restart(2, 9472, 9472);
            wait_for("the moved peer", || reaches(1, 7));
        },
    );
}
