//! Pods from outside the bubble, on the network of its relay.

use serde_json::json;

use super::support::{
    self, Call, Running, address, inside, json_of, netns, sh, succeeds, wait_for,
};
use super::{FORMS, add, bulk, call, nothing_is_left, pings, resident, resident_of};

/// A run of the plugin from outside the bubble.
fn far(command: &'static str, id: &str, form: &str) -> Call {
    let mut call = Call::new(command, id);
    call.netns = Some(format!("/run/netns/{id}").into());
    call.conf = json!({
        "cniVersion": "1.0.0", "name": "host", "type": "cni-hpk", "datapath": "tap",
        "relay": "/run/cni/relay", "dataDir": "/run/far", "tapForm": form,
    });
    if command == "GC" {
        call.conf["cniVersion"] = "1.1.0".into();
    }
    call
}

#[test]
#[ignore = "needs user namespaces, /dev/net/tun, iproute2, nft and host-local"]
fn a_far_pod_has_the_bubbles_address_and_outlives_the_daemon() {
    inside(
        "far::a_far_pod_has_the_bubbles_address_and_outlives_the_daemon",
        || {
            for form in FORMS {
                let mut daemon = resident();
                add("near", "descriptor");
                netns("far");
                let result = far("ADD", "far", form).run().unwrap();
                let ip = address("far");
                assert_eq!(result["ips"][0]["address"], format!("{ip}/24"));
                assert_eq!(result["interfaces"][2]["sandbox"], "/run/netns/far");
                assert!(pings("far", &address("near")), "{form}");
                assert!(pings("near", &ip), "{form}");
                bulk("far", "near", 16 << 20);
                let mut check = far("CHECK", "far", form);
                check.conf["prevResult"] = result;
                check.run().unwrap();
                daemon.kill();
                daemon = resident();
                wait_for("frames to move again", || pings("far", "10.244.3.1"));
                // The kubelet's GC knows nothing of it, and leaves it.
                let mut gc = Call::new("GC", "");
                gc.conf["cni.dev/valid-attachments"] = json!([]);
                gc.run().unwrap();
                check.run().unwrap();
                far("DEL", "far", form).run().unwrap();
                far("DEL", "far", form).run().unwrap();
                sh("umount /run/netns/far /run/netns/near; rm /run/netns/far /run/netns/near");
                nothing_is_left(1);
                drop(daemon);
            }
        },
    );
}

#[test]
#[ignore = "needs user namespaces, /dev/net/tun, iproute2, nft and host-local"]
fn what_a_dead_caller_left_is_released_and_gc_ends_what_is_stale() {
    inside(
        "far::what_a_dead_caller_left_is_released_and_gc_ends_what_is_stale",
        || {
            let _daemon = resident();
            netns("far");
            let conf = far("ADD", "far", "descriptor").conf.to_string();
            std::fs::write("/run/far.json", conf).unwrap();
            // A caller with a PID namespace of its own, as hpktainer on a host.
            let mut caller = Running::start(&format!(
                "unshare --pid --fork --kill-child --mount-proc sh -c 'CNI_COMMAND=ADD CNI_CONTAINERID=far \
             CNI_NETNS=/run/netns/far CNI_IFNAME=eth0 CNI_PATH={} {} < /run/far.json && touch /run/added; sleep 600'",
                support::plugin_path(),
                env!("CARGO_BIN_EXE_cni-hpk"),
            ));
            wait_for("its ADD", || succeeds("test -e /run/added"));
            assert!(pings("far", "10.244.3.1"));
            caller.kill();
            wait_for("its lease to be given back", || {
                sh("ls /run/cni/attachments").trim().is_empty()
            });
            // The same by GC.
            sh("ip -n far link show dev eth0 >/dev/null 2>&1 && exit 1 || true");
            far("ADD", "far", "frames").run().unwrap();
            let mut gc = far("GC", "", "frames");
            gc.conf["cni.dev/valid-attachments"] =
                json!([{"containerID": "far", "ifname": "eth0"}]);
            gc.run().unwrap();
            assert!(pings("far", "10.244.3.1"));
            gc.conf["cni.dev/valid-attachments"] = json!([]);
            gc.run().unwrap();
            sh("umount /run/netns/far; rm /run/netns/far; rm -f /run/far/relay/*.lock");
            nothing_is_left(1);
        },
    );
}

#[test]
#[ignore = "needs user namespaces, /dev/net/tun, iproute2, nft and host-local"]
fn a_far_add_without_a_bubble_says_so() {
    inside("far::a_far_add_without_a_bubble_says_so", || {
        netns("far");
        let error = far("ADD", "far", "descriptor").run().unwrap_err();
        assert!(error["msg"].as_str().unwrap().contains("/run/cni/relay"));
        assert_eq!(error["code"], 11);
        far("DEL", "far", "descriptor").run().unwrap();
    });
}

/// The network of `conf` with addresses of both families.
fn dual(mut conf: serde_json::Value) -> serde_json::Value {
    conf["subnet"] = json!(["10.244.3.0/24", "fd00:3::/64"]);
    conf["network"] = json!(["10.244.0.0/16", "fd00::/16"]);
    conf
}

/// The pod's IPv6 address, as `ip` sees it: usable at once.
fn address6(name: &str) -> String {
    let show = format!("ip -n {name} -j -6 address show dev eth0 scope global");
    let address = json_of(&show)[0]["addr_info"][0].clone();
    assert!(address.get("tentative").is_none(), "{address}");
    address["local"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs user namespaces, /dev/net/tun, iproute2, nft and host-local"]
fn ipv6_goes_by_tap_in_either_form_and_from_outside() {
    inside(
        "far::ipv6_goes_by_tap_in_either_form_and_from_outside",
        || {
            // As administrators do who want none on their hosts.
            let without = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6";
            for form in FORMS {
                let mut daemon = resident_of(&dual(support::conf()));
                let mut near = call("ADD", "near", form);
                near.conf = dual(near.conf);
                for name in ["near", "far"] {
                    netns(name);
                    sh(&format!("ip netns exec {name} sh -c '{without}'"));
                }
                near.run().unwrap();
                let result = far("ADD", "far", form).run().unwrap();
                assert_eq!(result["ips"].as_array().unwrap().len(), 2, "{result}");
                let (near6, far6) = (address6("near"), address6("far"));
                assert_eq!(result["ips"][1]["address"], format!("{far6}/64"));
                assert!(
                    succeeds(&format!("ping -6 -c1 -W1 {far6}")),
                    "{form}: bubble to pod"
                );
                for (from, to) in [("far", &near6), ("near", &far6)] {
                    let ping = format!("ip netns exec {from} ping -6 -i 0.1 -c10 -W1 {to}");
                    assert!(succeeds(&ping), "{form}: {from} to {to}");
                    // The kernel would send redirects, to a neighbour that it can't reach.
                    let cached = sh(&format!("ip -n {from} -6 route show cached"));
                    assert!(!cached.contains(to), "{form}: redirected: {cached}");
                }
                assert!(pings("far", &address("near")), "{form}: IPv4 beside it");
                daemon.kill();
                daemon = resident_of(&dual(support::conf()));
                wait_for("frames to move again", || {
                    succeeds(&format!("ip netns exec far ping -6 -c1 -W1 {near6}"))
                });
                far("DEL", "far", form).run().unwrap();
                near.command = "DEL";
                near.run().unwrap();
                sh("umount /run/netns/far /run/netns/near; rm /run/netns/far /run/netns/near");
                nothing_is_left(1);
                drop(daemon);
            }
        },
    );
}
