//! The overlay's mode `host`, against itself, our kernel mode, and a kernel's
//! VXLAN device configured by hand. `cargo test -p cni-hpk -- --ignored`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "overlay_host/changes.rs"]
mod changes;
mod support;

use support::site::{HostMode, Site};
use support::{Running, inside, json_of, sh, succeeds, wait_for};

fn reaches(from: usize, to: usize) -> bool {
    succeeds(&format!(
        "ip netns exec n{from} ping -q -c1 -W1 10.244.{to}.0"
    ))
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, openssl, etcd and etcdctl"]
fn host_mode_bubbles_reach_each_other_and_a_kernel_mode_one() {
    inside(
        "host_mode_bubbles_reach_each_other_and_a_kernel_mode_one",
        || {
            let mut site = Site::new();
            for host in [1, 2] {
                site.daemons[host - 1].kill();
            }
            for host in ["n1", "n2"] {
                succeeds(&format!("ip -n {host} link del hpk-vxlan"));
            }
            let mut one = HostMode::start(1);
            let two = HostMode::start(2);
            wait_for("all to reach each other", || {
                one.reaches(2)
                    && one.reaches(3)
                    && two.reaches(1)
                    && two.reaches(3)
                    && reaches(3, 1)
                    && reaches(3, 2)
            });
            sh(&one.inside("ping -q -c1 -W1 fd00:244:0:2::"));
            sh(&one.inside("ping -q -c1 -W1 fd00:244:0:3::"));
            // Whole frames, and more of them than fit in any buffer at once.
            sh(&one.inside("ping -q -c1 -W1 -M do -s 1422 10.244.2.0"));
            sh(&one.inside("ping -q -f -c 2000 -s 1000 10.244.2.0 | grep -q \" 0% packet loss\""));
            let frames = json_of(&one.inside("ip -j -s link show dev hpk-vxlan"));
            assert!(frames[0]["stats64"]["rx"]["packets"].as_u64().unwrap() > 2000);

            // The daemon's death, while etcd is away, costs no more than frames.
            let before =
                json_of(&one.inside("ip -j link show dev hpk-vxlan"))[0]["ifindex"].clone();
            site.etcd.kill();
            one.daemon.kill();
            one.daemon = HostMode::daemon(1, one.pid);
            wait_for("it to be back", || one.reaches(2) && two.reaches(1));
            let after = json_of(&one.inside("ip -j link show dev hpk-vxlan"))[0]["ifindex"].clone();
            assert_eq!(before, after, "the device was kept");

            // The bubble's end is the daemon's.
            one.bubble.kill();
            wait_for("the daemon to end", || {
                sh("cat daemon1.log").contains("the bubble has ended")
            });
        },
    );
}

/// A metric of the daemon of a host.
fn metric(host: usize, name: &str) -> u64 {
    let text = sh(&format!(
        "curl -sS --unix-socket state{host}.sock http://localhost/metrics"
    ));
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let value = value.unwrap_or_else(|| panic!("no {name} in {text}"));
    value.trim().parse().unwrap()
}

const BULK: &str = r#"
import hashlib, os, socket, sys
what, address, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
stream = socket.socket(family)
stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
digest = hashlib.sha256()
if what == "take":
    stream.bind((address, 7000))
    stream.listen()
    open("/run/listening", "w").close()
    peer = stream.accept()[0]
    while block := peer.recv(1 << 20):
        digest.update(block)
else:
    stream.connect((address, 7000))
    for _ in range(size):
        block = os.urandom(1 << 20)
        digest.update(block)
        stream.sendall(block)
print(digest.hexdigest())
"#;

/// Sends `size` MiB over TCP to `address`; what arrives must be what was sent.
/// Both commands run in the namespaces that `from` and `to` name.
fn bulk(from: &str, to: &str, address: &str, size: usize) {
    std::fs::write("/run/bulk.py", BULK).unwrap();
    let _ = std::fs::remove_file("/run/listening");
    let mut taker = Running::start(&format!("{to} python3 bulk.py take {address} 0 > taken"));
    wait_for("the taker", || {
        std::path::Path::new("/run/listening").exists()
    });
    let sent = sh(&format!(
        "timeout 60 {from} python3 bulk.py give {address} {size}"
    ));
    assert!(taker.0.wait().unwrap().success());
    assert_eq!(
        std::fs::read_to_string("/run/taken").unwrap(),
        sent,
        "{address}"
    );
}

/// Segments whose checksum the kernel found wrong.
fn wrong_checksums(namespace: &str) -> String {
    let counters = sh(&format!(
        "{namespace} nstat -asz TcpInCsumErrors UdpInCsumErrors Udp6InCsumErrors"
    ));
    let lines = counters.lines().filter(|line| line.contains("Csum"));
    lines
        .filter(|line| line.split_whitespace().nth(1) != Some("0"))
        .collect()
}

/// A kernel's device on host 2, as an administrator would make it.
fn device_by_hand() {
    sh("
        ip -n n2 link add hand address 02:00:00:00:00:02 mtu 1450 type vxlan id 4242 local 192.0.2.2 dstport 5555 nolearning dev ul
        ip -n n2 link set hand up; ip -n n2 address add 10.244.2.0/32 dev hand
        ip -n n2 address add fd00:244:0:2::/128 dev hand nodad
        ip -n n2 neigh add 10.244.1.0 lladdr 0a:58:0a:f4:01:00 dev hand nud permanent
        ip -n n2 neigh add fd00:244:0:1:: lladdr 0a:58:0a:f4:01:00 dev hand nud permanent
        bridge -n n2 fdb append 0a:58:0a:f4:01:00 dev hand dst 192.0.2.1 port 7001
        ip -n n2 route add 10.244.1.0/24 via 10.244.1.0 dev hand onlink
        ip -n n2 route add fd00:244:0:1::/64 via fd00:244:0:1:: dev hand onlink
        ETCDCTL_API=3 etcdctl --endpoints https://192.0.2.254:2379 --cacert ca.pem --cert client.pem --key client.key \
          put /hpk/overlay/peers/10.244.2.0-24 '{\"node\":\"hand\",\"host_ip\":\"192.0.2.2\",\"mode\":\"kernel\",\"udp_port\":5555,\"vni\":4242,\"mac\":\"02:00:00:00:00:02\",\"mtu\":1450,\"node_ip\":\"10.244.2.0\",\"subnet6\":\"fd00:244:0:2::/64\"}'
    ");
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, openssl, etcd, etcdctl, ethtool, curl and python3"]
fn a_kernel_device_made_by_hand_and_a_host_mode_bubble_understand_each_other() {
    inside(
        "a_kernel_device_made_by_hand_and_a_host_mode_bubble_understand_each_other",
        || {
            let mut site = Site::new();
            site.daemons.iter_mut().for_each(Running::kill);
            for host in ["n1", "n2"] {
                succeeds(&format!("ip -n {host} link del hpk-vxlan"));
            }
            device_by_hand();
            let one = HostMode::start(1);
            wait_for("each to reach the other", || one.reaches(2));
            sh(&one.inside("ping -q -c1 -W1 -M do -s 1422 10.244.2.0"));
            sh("ip netns exec n2 ping -q -c1 -W1 -M do -s 1422 10.244.1.0");
            sh("ip netns exec n2 ping -q -c1 -W1 -M do -s 1402 fd00:244:0:1::");

            let bubble = one.inside_plain();
            let hand = "ip netns exec n2";
            // As virtual links are; cut on the way; as a plain wire, which
            // wants each checksum right.
            for features in ["tso on", "tso off gso off gro off", "tx off"] {
                for host in [1, 2] {
                    sh(&format!(
                        "ip netns exec n{host} ethtool -K ul {features}; ethtool -K v{host} {features}"
                    ));
                }
                bulk(&bubble, hand, "10.244.2.0", 24);
                bulk(hand, &bubble, "10.244.1.0", 24);
                bulk(&bubble, hand, "fd00:244:0:2::", 24);
                bulk(hand, &bubble, "fd00:244:0:1::", 24);
            }
            assert_eq!(wrong_checksums(hand), "");
            assert_eq!(wrong_checksums(&bubble), "");
            assert!(metric(1, "hpk_overlay_segments_total{direction=\"sent\"}") > 10_000);
            assert!(metric(1, "hpk_overlay_segments_total{direction=\"received\"}") > 1000);
            assert_eq!(
                metric(
                    1,
                    "hpk_overlay_dropped_frames_total{reason=\"not_of_lease\"}"
                ),
                0
            );
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, openssl, etcd, etcdctl, curl and python3"]
fn what_no_peer_sent_is_dropped_and_counted() {
    inside("what_no_peer_sent_is_dropped_and_counted", || {
        let mut site = Site::new();
        site.daemons.iter_mut().for_each(Running::kill);
        let mut one = HostMode::start(1);
        let two = HostMode::start(2);
        wait_for("each to reach the other", || {
            one.reaches(2) && two.reaches(1)
        });
        bulk(
            &one.inside_plain(),
            &two.inside_plain(),
            "fd00:244:0:2::",
            24,
        );
        // The peer's host and port are free for another now.
        one.daemon.kill();
        let send = |port: u16, vni: u32, source: &str| {
            sh(&format!(
                "ip netns exec n1 python3 -c '
import socket
h = bytes([8,0,0,0]) + ({vni}).to_bytes(3, \"big\") + bytes([0])
f = bytes.fromhex(\"0a580af40200\" + \"0a580af40100\" + \"0800\" + \"4500\") + bytes(10)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((\"192.0.2.1\", {port}))
s.sendto(h + f + socket.inet_aton(\"{source}\") + bytes(20), (\"192.0.2.2\", 7002))'"
            ));
        };
        let dropped = |reason: &str| {
            metric(
                2,
                &format!("hpk_overlay_dropped_frames_total{{reason=\"{reason}\"}}"),
            )
        };
        let frames = || metric(2, "hpk_overlay_frames_total{direction=\"received\"}");
        let before = frames();
        for (reason, port, vni, source) in [
            ("not_from_peer", 7999, 4242, "10.244.1.5"),
            ("foreign_vni", 7001, 4243, "10.244.1.5"),
            ("not_of_lease", 7001, 4242, "10.244.2.5"),
            ("not_of_lease", 7001, 4242, "192.0.2.254"),
        ] {
            let counted = dropped(reason);
            send(port, vni, source);
            wait_for(reason, || dropped(reason) == counted + 1);
        }
        assert_eq!(frames(), before);
        send(7001, 4242, "10.244.1.5");
        wait_for("the peer's own to be taken", || frames() == before + 1);
    });
}
