//! Runs that are killed, runs at the same time, ranges that are full, things
//! removed by hand.

use serde_json::json;

use super::support::{Call, address, inside, leftovers, netns, sh, wait_for};

/// The system calls that change something, here.
/// By their names in both libraries: where glibc calls openat, musl calls open.
const EFFECTS: [&str; 9] = [
    "?open", "openat", "write", "writev", "sendto", "sendmsg", "?mkdir", "?unlink", "?rename",
];

fn collect() {
    let mut gc = Call::new("GC", "");
    gc.conf["cni.dev/valid-attachments"] = json!([]);
    gc.run().unwrap();
}

fn gone() -> bool {
    // A killed run's interface goes with its last reference, a little later.
    leftovers().is_empty()
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, host-local and strace"]
fn an_add_killed_before_any_step_leaves_nothing_after_del_or_gc() {
    inside(
        "faults::an_add_killed_before_any_step_leaves_nothing_after_del_or_gc",
        || {
            let mut kills = 0;
            for syscall in EFFECTS {
                for count in 1.. {
                    let id = format!("{}{count}", syscall.trim_start_matches('?'));
                    netns(&id);
                    // Every other time in a bubble that has no bridge yet.
                    if count % 2 == 0 {
                        sh("ip link del hpk-bridge 2>/dev/null || true");
                    }
                    let killed = Call::new("ADD", &id).run_until(syscall, count);
                    kills += usize::from(killed);
                    match count % 3 {
                        0 => collect(),
                        _ => drop(Call::new("DEL", &id).run().unwrap()),
                    }
                    wait_for(&format!("{syscall} {count}: nothing left"), gone);
                    sh(&format!("umount /run/netns/{id}; rm /run/netns/{id}"));
                    if !killed {
                        break;
                    }
                }
            }
            assert!(kills > 30, "only {kills} kills");
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, host-local and strace"]
fn a_del_killed_before_any_step_is_finished_by_the_next() {
    inside(
        "faults::a_del_killed_before_any_step_is_finished_by_the_next",
        || {
            for syscall in EFFECTS {
                for count in 1.. {
                    netns("a");
                    Call::new("ADD", "a").run().unwrap();
                    let killed = Call::new("DEL", "a").run_until(syscall, count);
                    match count % 2 {
                        0 => collect(),
                        _ => drop(Call::new("DEL", "a").run().unwrap()),
                    }
                    wait_for(&format!("{syscall} {count}: nothing left"), gone);
                    sh("umount /run/netns/a; rm /run/netns/a");
                    if !killed {
                        break;
                    }
                }
            }
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn an_add_that_was_killed_can_come_again() {
    inside("faults::an_add_that_was_killed_can_come_again", || {
        netns("a");
        // After the lease, before the interface.
        for count in 1.. {
            let killed = Call::new("ADD", "a").run_until("write", count);
            if !killed {
                break;
            }
        }
        assert!(address("a").starts_with("10.244.3."));
        assert_eq!(sh("ls /run/cni/networks/hpk | grep -c ^10").trim(), "1");
    });
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn two_hundred_at_once_have_two_hundred_addresses_and_leave_none() {
    inside(
        "faults::two_hundred_at_once_have_two_hundred_addresses_and_leave_none",
        || {
            let ids: Vec<String> = (0..200).map(|number| format!("pod{number}")).collect();
            ids.iter().for_each(|id| netns(id));
            let each = |command: &'static str| {
                std::thread::scope(|scope| {
                    for id in &ids {
                        scope.spawn(move || Call::new(command, id).run().unwrap());
                    }
                });
            };
            each("ADD");
            let mut addresses: Vec<String> = ids.iter().map(|id| address(id)).collect();
            addresses.sort();
            addresses.dedup();
            assert_eq!(addresses.len(), 200);
            each("DEL");
            assert_eq!(leftovers(), "");
            assert_eq!(sh("nft list ruleset | grep -c 'hpk:'").trim(), "1");
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn the_same_attachment_two_hundred_times_at_once_is_one_or_none() {
    inside(
        "faults::the_same_attachment_two_hundred_times_at_once_is_one_or_none",
        || {
            netns("a");
            std::thread::scope(|scope| {
                for number in 0..200 {
                    scope.spawn(move || match number % 2 {
                        // One at a time gets it; the others are refused.
                        0 => drop(Call::new("ADD", "a").run()),
                        _ => drop(Call::new("DEL", "a").run().unwrap()),
                    });
                }
            });
            let leases = sh("ls /run/cni/networks/hpk | grep -c ^10 || true");
            let links = sh("ip -br link show type veth | wc -l");
            assert_eq!(leases.trim(), links.trim());
            Call::new("DEL", "a").run().unwrap();
            assert_eq!(leftovers(), "");
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn a_full_range_is_a_clear_error_and_status_tells_it() {
    inside(
        "faults::a_full_range_is_a_clear_error_and_status_tells_it",
        || {
            let with_subnet = |mut call: Call| {
                call.conf["subnet"] = "10.5.0.0/29".into();
                call
            };
            let add = |id: &str| {
                netns(id);
                with_subnet(Call::new("ADD", id)).run()
            };
            let status = with_subnet(Call::new("STATUS", ""));
            for id in ["a", "b", "c", "d"] {
                add(id).unwrap();
            }
            status.run().unwrap();
            add("e").unwrap();
            let error = add("f").unwrap_err();
            assert!(
                error["msg"].as_str().unwrap().contains("10.5.0.1-10.5.0.6"),
                "{error}"
            );
            assert!(error["details"].as_str().unwrap().contains("GC"), "{error}");
            assert_eq!(status.run().unwrap_err()["code"], 50);
            with_subnet(Call::new("DEL", "c")).run().unwrap();
            status.run().unwrap();
            add("g").unwrap();
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn an_interface_removed_by_hand_is_told_by_check_and_no_hindrance_to_del() {
    inside(
        "faults::an_interface_removed_by_hand_is_told_by_check_and_no_hindrance_to_del",
        || {
            netns("a");
            let result = Call::new("ADD", "a").run().unwrap();
            sh("ip -n a link del eth0");
            let mut check = Call::new("CHECK", "a");
            check.conf["prevResult"] = result;
            let error = check.run().unwrap_err();
            assert!(error["msg"].as_str().unwrap().contains("eth0"), "{error}");
            Call::new("DEL", "a").run().unwrap();
            assert_eq!(leftovers(), "");
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft and host-local"]
fn a_restarted_bubble_gives_back_what_the_former_had() {
    inside(
        "faults::a_restarted_bubble_gives_back_what_the_former_had",
        || {
            for id in ["a", "b", "c"] {
                netns(id);
                Call::new("ADD", id).run().unwrap();
            }
            // A stock host-local's lease, and one of a run that was killed.
            sh(
                "printf 'x\\r\\neth0' > /run/cni/networks/hpk/10.244.3.99; : > /run/cni/networks/hpk/10.244.3.98",
            );
            // The bubble's namespace goes with all interfaces; its folder stays.
            sh(
                "for id in a b c; do umount /run/netns/$id; rm /run/netns/$id; done; ip link del hpk-bridge",
            );
            wait_for("the interfaces to go", || {
                !leftovers().contains("hpk0") && sh("ip -br link show type veth").is_empty()
            });
            netns("new");
            Call::new("ADD", "new").run().unwrap();
            assert_eq!(sh("ls /run/cni/networks/hpk | grep -c ^10").trim(), "1");
            assert_eq!(sh("ls /run/cni/attachments").trim(), "hpk:new:eth0");
        },
    );
}
