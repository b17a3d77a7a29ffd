//! Datapath `tap` on a real kernel: pods' TAPs joined to the bridge by
//! `hpk-net-daemon relay`.
//!
//! `cargo test -p cni-hpk -- --ignored`; as an ordinary user too, where user
//! namespaces are allowed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "relay/far.rs"]
mod far;
mod support;

use serde_json::{Value, json};
use support::{Call, Running, address, inside, json_of, netns, sh, succeeds, wait_for};

const DAEMON: &str = env!("CARGO_BIN_EXE_hpk-net-daemon");
const FORMS: [&str; 2] = ["descriptor", "frames"];

fn call(command: &'static str, id: &str, form: &str) -> Call {
    let mut call = Call::new(command, id);
    call.conf["datapath"] = "tap".into();
    call.conf["tapForm"] = form.into();
    call
}

fn add(id: &str, form: &str) -> Value {
    netns(id);
    call("ADD", id, form).run().unwrap()
}

fn del(id: &str, form: &str) {
    call("DEL", id, form).run().unwrap();
}

/// As in a bubble: supervised, not started by an ADD.
fn resident() -> Running {
    resident_of(&support::conf())
}

/// The same, of a network of one's own.
fn resident_of(plugin: &Value) -> Running {
    std::fs::create_dir_all("/run/net.d").unwrap();
    let list = json!({"cniVersion": "1.1.0", "name": "hpk", "plugins": [plugin]});
    std::fs::write("/run/net.d/10-hpk.conflist", list.to_string()).unwrap();
    let daemon = Running::start(&format!(
        "{DAEMON} relay serve --data-dir /run/cni --conf-dir /run/net.d --cni-path {} >>/run/relay.log 2>&1",
        support::plugin_path()
    ));
    wait_for("the relay to listen", || {
        succeeds(&format!("{DAEMON} relay status --data-dir /run/cni"))
    });
    daemon
}

fn pings(from: &str, to: &str) -> bool {
    succeeds(&format!("ip netns exec {from} ping -c1 -W1 {to}"))
}

/// The counter of that name, summed over what its labels have in them.
fn counter(name: &str, label: &str) -> f64 {
    let text = sh(&format!("{DAEMON} relay status --data-dir /run/cni"));
    text.lines()
        .filter(|line| line.starts_with(name) && line.contains(label))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

fn processes(words: &str) -> usize {
    sh(&format!("pgrep -cf '{words}' || true"))
        .trim()
        .parse()
        .unwrap()
}

/// Nothing of any attachment is left, and no daemon but a supervised one.
fn nothing_is_left(supervised: usize) {
    wait_for("the daemons to end", || {
        processes("relay (serve|pod)") == supervised
    });
    let taps = json_of("ip -j link show type tun");
    assert_eq!(taps.as_array().unwrap().len(), 0, "{taps}");
    let leases = sh("find /run/cni/networks -name '10.*' 2>/dev/null");
    assert_eq!(leases.trim(), "");
    assert_eq!(sh("ls /run/cni/attachments").trim(), "");
    let locks = sh("find /run/cni/relay /run/far/relay -name '*:*' 2>/dev/null || true");
    assert_eq!(locks.trim(), "");
    if supervised == 0 {
        assert!(!succeeds("test -e /run/cni/relay/relay.sock"));
    }
}

/// Sends `bytes` by TCP from one pod to the other.
fn bulk(from: &str, to: &str, bytes: usize) {
    let address = address(to);
    let _server = Running::start(&format!(
        "ip netns exec {to} python3 -c '
import socket
s = socket.socket(); s.bind((\"0.0.0.0\", 5001)); s.listen()
while True:
    c, _ = s.accept(); n = 0
    while data := c.recv(1 << 20): n += len(data)
    print(n, file=open(\"/run/received\", \"w\"))'"
    ));
    wait_for("the server", || {
        succeeds(&format!("ip netns exec {to} ss -ltn | grep -q :5001"))
    });
    sh(&format!(
        "rm -f /run/received; ip netns exec {from} python3 -c '
import socket
s = socket.create_connection((\"{address}\", 5001), 5)
block = bytes(1 << 20)
for _ in range({bytes} >> 20): s.sendall(block)'"
    ));
    wait_for("all bytes to arrive", || {
        succeeds(&format!("grep -qx {bytes} /run/received"))
    });
}

#[test]
#[ignore = "needs user namespaces, /dev/net/tun, iproute2, nft and host-local"]
fn pods_by_tap_reach_each_other_and_super_frames_go_through_whole() {
    inside(
        "pods_by_tap_reach_each_other_and_super_frames_go_through_whole",
        || {
            for form in FORMS {
                let result = add("a", form);
                add("b", form);
                let (a, b) = (address("a"), address("b"));
                assert_eq!(result["ips"][0]["address"], format!("{a}/24"));
                assert!(pings("a", &b), "{form}");
                assert!(pings("b", &a), "{form}");
                bulk("a", "b", 64 << 20);
                let sent = r#"container="a",interface="eth0",direction="from_pod""#;
                let (bytes, frames) = (
                    counter("hpk_relay_bytes_total", sent),
                    counter("hpk_relay_frames_total", sent),
                );
                assert!(bytes > f64::from(64 << 20), "{form}: {bytes} bytes");
                assert!(
                    bytes / frames > 8000.0,
                    "{form}: {bytes} in {frames} frames"
                );
                assert!(counter("hpk_relay_super_frames_total", sent) > 100.0);
                assert_eq!(counter("hpk_relay_lost_total", ""), 0.0, "{form}");
                // The kernel's own figures say the same.
                let device = json_of("ip -n b -s -j link show dev eth0");
                let received = &device[0]["stats64"]["rx"];
                let mean =
                    received["bytes"].as_f64().unwrap() / received["packets"].as_f64().unwrap();
                assert!(mean > 8000.0, "{form}: {mean} bytes a packet");
                let joined = format!("container=\"b\",interface=\"eth0\",form=\"{form}\"");
                assert_eq!(counter("hpk_relay_joined", &joined), 1.0);
                del("a", form);
                del("b", form);
                sh("umount /run/netns/a /run/netns/b; rm /run/netns/a /run/netns/b");
                nothing_is_left(0);
            }
        },
    );
}

#[test]
#[ignore = "needs user namespaces, /dev/net/tun, iproute2, nft and host-local"]
fn a_second_add_is_refused_and_del_may_come_twice() {
    inside("a_second_add_is_refused_and_del_may_come_twice", || {
        for form in FORMS {
            let result = add("a", form);
            call("ADD", "a", form).run().unwrap_err();
            assert!(pings("a", "10.244.3.1"), "the first is whole");
            let mut check = call("CHECK", "a", form);
            check.conf["prevResult"] = result;
            check.run().unwrap();
            sh("ip -n a route del default");
            if form == "descriptor" {
                let error = check.run().unwrap_err().to_string();
                assert!(error.contains("0.0.0.0/0"), "{error}");
            }
            del("a", form);
            assert!(!succeeds("ip -n a link show dev eth0"), "{form}");
            del("a", form);
            sh("umount /run/netns/a; rm /run/netns/a");
            del("a", form);
            nothing_is_left(0);
        }
    });
}

#[test]
#[ignore = "needs user namespaces, /dev/net/tun, iproute2, nft and host-local"]
fn an_add_that_fails_leaves_nothing_behind() {
    inside("an_add_that_fails_leaves_nothing_behind", || {
        for form in FORMS {
            netns("a");
            sh("ip -n a link add eth0 type bridge");
            call("ADD", "a", form).run().unwrap_err();
            sh("umount /run/netns/a; rm /run/netns/a");
            nothing_is_left(0);
        }
    });
}

#[test]
#[ignore = "needs user namespaces, /dev/net/tun, iproute2, nft and host-local"]
fn a_stalled_relay_holds_frames_up_and_loses_and_swaps_none() {
    inside(
        "a_stalled_relay_holds_frames_up_and_loses_and_swaps_none",
        || {
            // What a receiver's buffer has room for where rmem_max is as usual.
            const COUNT: usize = 150;
            for form in FORMS {
                let daemon = resident();
                add("a", form);
                add("b", form);
                let b = address("b");
                assert!(pings("a", &b));
                let _server = Running::start(&format!(
                    "ip netns exec b python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((\"0.0.0.0\", 5002))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
got = [s.recv(2000)[:6] for _ in range({COUNT})]
print(got == sorted(got), len(set(got)), file=open(\"/run/got\", \"w\"))'"
                ));
                wait_for("the server", || {
                    succeeds("ip netns exec b ss -lun | grep -q :5002")
                });
                sh(&format!("rm -f /run/got; kill -STOP {}", daemon.0.id()));
                sh(&format!(
                    "ip netns exec a python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range({COUNT}): s.sendto(b\"%06d\" % n + bytes(1394), (\"{b}\", 5002))'"
                ));
                sh(&format!("kill -CONT {}", daemon.0.id()));
                wait_for("all datagrams", || succeeds("test -s /run/got"));
                let got = std::fs::read_to_string("/run/got").unwrap();
                assert_eq!(got.trim(), format!("True {COUNT}"), "{form}");
                del("a", form);
                del("b", form);
                sh("umount /run/netns/a /run/netns/b; rm /run/netns/a /run/netns/b");
                nothing_is_left(1);
                drop(daemon);
            }
        },
    );
}

#[test]
#[ignore = "needs user namespaces, /dev/net/tun, iproute2, nft and host-local"]
fn either_side_may_be_killed_at_any_moment() {
    inside("either_side_may_be_killed_at_any_moment", || {
        for form in FORMS {
            let mut daemon = resident();
            add("a", form);
            assert!(pings("a", "10.244.3.1"));
            let comes_back = |what: &str| {
                wait_for(&format!("{form}: frames to move again: {what}"), || {
                    pings("a", "10.244.3.1")
                });
            };
            daemon.kill();
            assert!(!pings("a", "10.244.3.1"), "nobody moves frames");
            daemon = resident();
            comes_back("the resident daemon killed");
            if form == "frames" {
                let sides = || sh("pgrep -f 'relay po[d]' | sort -n");
                let before = sides();
                let child = before.split_whitespace().last().unwrap().to_owned();
                sh(&format!("kill -9 {child}"));
                comes_back("the pod's side killed");
                sh(&format!("kill -9 {}", sides().replace('\n', " ")));
                comes_back("the pod's side killed whole");
                assert_ne!(before, sides());
            }
            // Both, and DEL finds only what is on disk.
            daemon.kill();
            sh("pkill -9 -f 'relay po[d]' || true");
            del("a", form);
            sh("umount /run/netns/a; rm /run/netns/a");
            nothing_is_left(0);
        }
    });
}

#[test]
#[ignore = "needs user namespaces, /dev/net/tun, iproute2, nft and host-local"]
fn a_peer_that_talks_rubbish_is_closed_alone() {
    inside("a_peer_that_talks_rubbish_is_closed_alone", || {
        let _daemon = resident();
        add("a", "frames");
        let answers = sh("python3 -c '
import socket, os, array
def ask(data, fds=()):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(5)
    s.connect(\"/run/cni/relay/relay.sock\")
    s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array(\"i\", fds))] if fds else [])
    return s, s.recv(70000)
for data in [b\"{\", os.urandom(500), b\"x\" * 70000, b\"{\\\"op\\\":\\\"reboot\\\"}\"]:
    assert b\"failed\" in ask(data)[1], data[:20]
join = b\"{\\\"op\\\":\\\"join\\\",\\\"attachment\\\":{\\\"network\\\":\\\"hpk\\\",\\\"containerId\\\":\\\"%s\\\",\\\"ifname\\\":\\\"eth0\\\"},\\\"form\\\":\\\"%s\\\"}\"
null = os.open(\"/dev/null\", os.O_RDONLY)
assert b\"unknown\" in ask(join % (b\"none\", b\"frames\"))[1]
assert b\"no TAP\" in ask(join % (b\"a\", b\"descriptor\"), [null])[1]
assert b\"missing\" in ask(join % (b\"a\", b\"descriptor\"))[1]
s, answer = ask(join % (b\"a\", b\"frames\"))
assert b\"done\" in answer, answer
s.send(os.urandom(9))
while s.recv(70000): pass
print(\"closed\")'");
        assert_eq!(answers.trim(), "closed");
        wait_for("the pod's own side to be back", || pings("a", "10.244.3.1"));
        del("a", "frames");
        nothing_is_left(1);
    });
}
