//! What callers ask for: capabilities, arguments, versions, delegates.

use serde_json::{Value, json};

use super::support::{Call, inside, json_of, leftovers, netns, sh, succeeds};

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn address_hardware_address_and_resolver_are_given_as_asked() {
    inside(
        "asked::address_hardware_address_and_resolver_are_given_as_asked",
        || {
            netns("a");
            let mut add = Call::new("ADD", "a");
            add.conf["runtimeConfig"] = json!({
                "ips": ["10.244.3.77/24"], "mac": "c2:11:22:33:44:55", "cgroupPath": "/x",
                "portMappings": [{"hostPort": 80}],
                "dns": {"servers": ["10.43.0.10"], "searches": ["svc.cluster.local"], "options": ["ndots:5"]},
            });
            let result = add.run().unwrap();
            assert_eq!(result["ips"][0]["address"], "10.244.3.77/24");
            let link = json_of("ip -n a -j address show dev eth0");
            assert_eq!(link[0]["address"], "c2:11:22:33:44:55");
            assert_eq!(link[0]["addr_info"][0]["local"], "10.244.3.77");
            assert_eq!(result["interfaces"][2]["mac"], "c2:11:22:33:44:55");
            assert_eq!(result["dns"]["search"], json!(["svc.cluster.local"]));
            netns("b");
            let mut second = Call {
                id: "b".to_owned(),
                ..add.clone()
            };
            second.netns = Some("/run/netns/b".into());
            let error = second.run().unwrap_err();
            assert!(
                error["msg"].as_str().unwrap().contains("10.244.3.77"),
                "{error}"
            );
            Call {
                command: "DEL",
                ..add
            }
            .run()
            .unwrap();
            assert_eq!(leftovers(), "");
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn ranges_that_come_with_attachments_are_all_served_by_the_bridge() {
    inside(
        "asked::ranges_that_come_with_attachments_are_all_served_by_the_bridge",
        || {
            let call = |command, id: &str, subnet: &str| {
                let mut call = Call::new(command, id);
                for key in ["subnetFile", "overlayFile"] {
                    call.conf.as_object_mut().unwrap().remove(key);
                }
                call.conf["ipam"] = json!({"type": "host-local"});
                if !subnet.is_empty() {
                    call.conf["runtimeConfig"] = json!({"ipRanges": [[{"subnet": subnet}]]});
                }
                call
            };
            let gateways = || {
                let links = json_of("ip -j -4 address show dev hpk-bridge");
                links[0]["addr_info"].as_array().unwrap().len()
            };
            let pods = [
                ("a", "10.5.0.0/24"),
                ("b", "10.6.0.0/24"),
                ("c", "10.5.0.0/24"),
            ];
            pods.iter().for_each(|(id, _)| netns(id));
            let results: Vec<Value> = std::thread::scope(|scope| {
                let adds = pods.map(|(id, subnet)| {
                    scope.spawn(move || call("ADD", id, subnet).run().unwrap())
                });
                adds.into_iter().map(|add| add.join().unwrap()).collect()
            });
            assert_eq!(gateways(), 2);
            assert_eq!(sh("nft list table ip hpk | grep -c masquerade").trim(), "2");
            for from in ["a", "b", "c"] {
                for result in &results {
                    let to = result["ips"][0]["address"].as_str().unwrap();
                    let to = to.trim_end_matches("/24");
                    assert!(
                        succeeds(&format!("ip netns exec {from} ping -q -c1 -W1 {to}")),
                        "{from} to {to}"
                    );
                }
            }
            for ((id, subnet), result) in pods.iter().zip(&results) {
                let mut check = call("CHECK", id, subnet);
                check.conf["prevResult"] = result.clone();
                check.run().unwrap();
            }
            let mut status = call("STATUS", "", "");
            status.conf["cniVersion"] = "1.1.0".into();
            status.run().unwrap();
            // The last of a range takes its gateway along, at the next ADD.
            call("DEL", "b", "10.6.0.0/24").run().unwrap();
            netns("d");
            call("ADD", "d", "10.5.0.0/24").run().unwrap();
            assert_eq!(gateways(), 1);
            // DEL comes without them as well.
            for id in ["a", "c", "d"] {
                call("DEL", id, "").run().unwrap();
            }
            assert_eq!(leftovers(), "");
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn the_result_is_in_the_version_asked_for_and_goes_on_from_the_one_before() {
    inside(
        "asked::the_result_is_in_the_version_asked_for_and_goes_on_from_the_one_before",
        || {
            netns("a");
            let mut call = Call::new("ADD", "a");
            for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                call.conf["cniVersion"] = version.into();
                call.conf["prevResult"] = json!({
                    "cniVersion": version, "interfaces": [{"name": "lo", "sandbox": "/run/netns/a"}],
                    "ips": [], "routes": [{"dst": "192.0.2.0/24"}],
                });
                call.command = "ADD";
                let result = call.run().unwrap();
                assert_eq!(result["cniVersion"], version);
                assert_eq!(result["interfaces"][0]["name"], "lo", "{version}");
                assert_eq!(result["ips"][0]["interface"], 3);
                assert_eq!(result["ips"][0].get("version").is_some(), version < "1.0.0");
                assert_eq!(
                    result["interfaces"][3].get("mtu").is_some(),
                    version == "1.1.0"
                );
                assert_eq!(result["routes"][0]["dst"], "192.0.2.0/24");
                call.conf["prevResult"] = result;
                call.command = "CHECK";
                let checked = call.run();
                match version {
                    "0.3.1" => assert_eq!(checked.unwrap_err()["code"], 1),
                    _ => drop(checked.unwrap()),
                }
                for command in ["GC", "STATUS"] {
                    if version != "1.1.0" {
                        let error = Call {
                            command,
                            ..call.clone()
                        }
                        .run()
                        .unwrap_err();
                        assert_eq!(error["code"], 1, "{error}");
                    }
                }
                call.command = "DEL";
                call.run().unwrap();
            }
            assert_eq!(leftovers(), "");
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn a_delegate_gets_what_flannels_own_plugin_would_give_it() {
    inside(
        "asked::a_delegate_gets_what_flannels_own_plugin_would_give_it",
        || {
            netns("a");
            let mut add = Call::new("ADD", "a");
            add.conf["delegate"] = json!({"hairpinMode": true, "bridge": "cni7"});
            let result = add.run().unwrap();
            let port = result["interfaces"][1]["name"].as_str().unwrap();
            let port = json_of(&format!("ip -d -j link show dev {port}"));
            assert_eq!(port[0]["linkinfo"]["info_slave_data"]["hairpin"], true);
            assert_eq!(port[0]["mtu"], 1450);
            assert!(
                succeeds("ip -n a route get 10.244.9.9"),
                "a route to all pods"
            );
            let mut gc = Call::new("GC", "");
            gc.conf["delegate"] = add.conf["delegate"].clone();
            gc.conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
            gc.run().unwrap();
            assert!(
                succeeds("ip -n a link show dev eth0"),
                "GC keeps what is valid"
            );
            // The lease may be another by the time of DEL.
            sh("sed -i s/10.244.3.1/10.244.7.1/ /run/subnet.env");
            Call {
                command: "DEL",
                ..add
            }
            .run()
            .unwrap();
            assert_eq!(leftovers(), "");
            assert!(
                !succeeds("nft list ruleset | grep -q 10.244.3"),
                "no rule is left"
            );
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, host-local and iptables"]
fn iptables_masquerades_as_well_and_once() {
    inside("asked::iptables_masquerades_as_well_and_once", || {
        let mut add = Call::new("ADD", "a");
        add.conf["ipMasqBackend"] = "iptables".into();
        netns("a");
        netns("b");
        let result = add.run().unwrap();
        let b = Call {
            id: "b".to_owned(),
            netns: Some("/run/netns/b".into()),
            ..add.clone()
        };
        b.run().unwrap();
        let rules = "for save in iptables-legacy-save iptables-save; do $save -t nat 2>/dev/null; done | grep -c MASQUERADE";
        assert_eq!(sh(rules).trim(), "1");
        assert!(!succeeds("nft list table ip hpk"), "no other rules");
        sh("ip netns add world; ip link add up0 type veth peer name w0 netns world");
        sh("ip address add 192.0.2.1/24 dev up0; ip link set up0 up");
        sh("ip -n world address add 192.0.2.2/24 dev w0; ip -n world link set w0 up");
        assert!(
            succeeds("ip netns exec a ping -c1 -W2 192.0.2.2"),
            "outside"
        );
        let mut check = Call {
            command: "CHECK",
            ..add.clone()
        };
        check.conf["prevResult"] = result;
        check.run().unwrap();
        sh("iptables-legacy -t nat -F POSTROUTING; iptables -t nat -F POSTROUTING");
        assert!(check.run().is_err(), "nothing jumps there");
    });
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn errors_have_the_specifications_codes_and_name_the_value() {
    inside(
        "asked::errors_have_the_specifications_codes_and_name_the_value",
        || {
            netns("a");
            let fails = |change: &dyn Fn(&mut Call), code: u32, word: &str| {
                let mut call = Call::new("ADD", "a");
                change(&mut call);
                let error: Value = call.run().unwrap_err();
                let text = format!("{} {}", error["msg"], error["details"]);
                assert_eq!(error["code"], code, "{error}");
                assert!(text.contains(word), "{error}");
            };
            fails(&|call| call.conf["cniVersion"] = "9.9.9".into(), 1, "9.9.9");
            fails(
                &|call| {
                    call.conf["ipam"] = json!({"routes": [{"dst": "192.0.2.0/24", "table": 77}]});
                },
                2,
                "77",
            );
            fails(
                &|call| call.conf["runtimeConfig"] = json!({"ipRanges": [7]}),
                7,
                "[7]",
            );
            fails(
                &|call| call.netns = Some("/run/netns/none".into()),
                3,
                "/run/netns/none",
            );
            fails(&|call| call.id = "../x".to_owned(), 4, "../x");
            fails(&|call| call.netns = None, 4, "CNI_NETNS");
            fails(
                &|call| call.netns = Some("/proc/self/ns/net".into()),
                4,
                "own network namespace",
            );
            fails(&|call| call.conf = json!("text"), 7, "object");
            fails(
                &|call| call.conf["subnet"] = "10.0.0.0/33".into(),
                7,
                "10.0.0.0/33",
            );
            fails(&|call| call.conf["name"] = "a/b".into(), 7, "a/b");
            fails(
                &|call| call.conf["ipam"] = json!({"type": "nothere"}),
                7,
                "nothere",
            );
            fails(
                &|_| sh("echo FLANNEL_SUBNET=10.244.3.1/24 > /run/subnet.env").clear(),
                11,
                "FLANNEL_NETWORK",
            );
            fails(
                &|_| sh("echo FLANNEL_MTU=x >> /run/subnet.env").clear(),
                6,
                "FLANNEL_MTU",
            );
            assert_eq!(leftovers(), "");
        },
    );
}
