//! What may change while pods talk: daemons, etcd, ports, addresses; and links
//! that differ.

use super::support::site::{HostMode, Place, Site, start_etcd};
use super::support::{Running, inside, json_of, sh, succeeds, wait_for};
use super::{bulk, metric, reaches, wrong_checksums};

/// A site on which all three hosts' daemons are in mode `kernel`, but for these.
fn site_without(hosts: &[usize]) -> Site {
    let mut site = Site::new();
    for host in hosts {
        site.daemons[host - 1].kill();
        succeeds(&format!("ip -n n{host} link del hpk-vxlan"));
    }
    site
}

const STREAM: &str = r#"
import os, socket, sys, time
what, address = sys.argv[1], sys.argv[2]
if what == "take":
    server = socket.create_server((address, 7000))
    open("/run/listening", "w").close()
    got = 0
    for line in server.accept()[0].makefile():
        got += 1
        assert int(line) == got, (line, got)
        open("/run/progress.part", "w").write(str(got))
        os.rename("/run/progress.part", "/run/progress")
    open("/run/taken", "w").write(str(got))
else:
    stream = socket.create_connection((address, 7000))
    number = 0
    while not os.path.exists("/run/stop"):
        number += 1
        stream.sendall(b"%d\n" % number)
        time.sleep(0.02)
    open("/run/given", "w").write(str(number))
"#;

/// One TCP connection, over which numbers go fifty times a second.
struct Stream {
    _giver: Running,
    taker: Running,
}

impl Stream {
    fn start(from: &HostMode, to: &HostMode, address: &str) -> Self {
        std::fs::write("/run/stream.py", STREAM).unwrap();
        let start = |of: &HostMode, what: &str| {
            let enter = of.inside_plain();
            Running::start(&format!(
                "{enter} python3 stream.py {what} {address} >>{what}.log 2>&1"
            ))
        };
        let taker = start(to, "take");
        wait_for("the taker", || succeeds("test -e /run/listening"));
        let this = Self {
            _giver: start(from, "give"),
            taker,
        };
        this.goes_on("at first");
        this
    }

    fn progress() -> u64 {
        let text = std::fs::read_to_string("/run/progress").unwrap_or_default();
        text.parse().unwrap_or_default()
    }

    fn goes_on(&self, after: &str) {
        let before = Self::progress();
        wait_for(&format!("the connection to go on: {after}"), || {
            Self::progress() > before + 50
        });
    }

    /// Nothing comes any more.
    fn stalls(&self) {
        wait_for("the connection to stall", || {
            let before = Self::progress();
            std::thread::sleep(std::time::Duration::from_millis(300));
            Self::progress() == before
        });
    }

    fn ends_whole(mut self) {
        std::fs::write("/run/stop", "").unwrap();
        assert!(self.taker.0.wait().unwrap().success());
        let read = |name| std::fs::read_to_string(name).unwrap();
        assert_eq!(read("/run/taken"), read("/run/given"));
    }
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, openssl, etcd, etcdctl and python3"]
fn a_connection_lives_through_deaths_an_absent_etcd_and_another_port_and_address() {
    inside(
        "changes::a_connection_lives_through_deaths_an_absent_etcd_and_another_port_and_address",
        || {
            let mut site = site_without(&[1, 2]);
            let (mut one, mut two) = (HostMode::start(1), HostMode::start(2));
            wait_for("each to reach the other", || {
                one.reaches(2) && two.reaches(1)
            });
            let stream = Stream::start(&one, &two, "10.244.2.0");

            one.daemon.kill();
            stream.stalls();
            one.daemon = HostMode::daemon(1, one.pid);
            stream.goes_on("a daemon was killed");

            site.etcd.kill();
            stream.goes_on("etcd is away");
            two.daemon.kill();
            two.daemon = HostMode::daemon(2, two.pid);
            stream.goes_on("etcd is away and a daemon was killed");

            // Its peer can't know yet.
            one.daemon.kill();
            let mut place = Place {
                port: 7501,
                ..Place::of(1)
            };
            one.daemon = HostMode::daemon_at(1, one.pid, &place);
            stream.stalls();
            site.etcd = start_etcd();
            stream.goes_on("another port");

            // Not the address that the kernel would choose to send from.
            sh("ip -n n1 address add 192.0.2.101/24 dev ul");
            one.daemon.kill();
            place.address = "192.0.2.101".to_owned();
            one.daemon = HostMode::daemon_at(1, one.pid, &place);
            stream.goes_on("another address");
            let known = std::fs::read_to_string("/run/state2.peers").unwrap();
            assert!(
                known.contains("192.0.2.101") && known.contains("7501"),
                "{known}"
            );

            // A link that is down for a while.
            sh("ip link set dev v2 down");
            stream.stalls();
            sh("ip link set dev v2 up");
            stream.goes_on("cut and healed");
            stream.ends_whole();
        },
    );
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, openssl, etcd, etcdctl, curl and python3"]
fn jumbo_frames_are_used_where_the_links_have_them_and_others_get_smaller_ones() {
    inside(
        "changes::jumbo_frames_are_used_where_the_links_have_them_and_others_get_smaller_ones",
        || {
            let _site = site_without(&[1, 2]);
            for host in [1, 2] {
                sh(&format!(
                    "ip link set dev v{host} mtu 9000; ip -n n{host} link set dev ul mtu 9000"
                ));
            }
            let jumbo = |host| Place {
                mtu: 9000,
                ..Place::of(host)
            };
            let one = HostMode::start_at(1, &jumbo(1));
            let two = HostMode::start_at(2, &jumbo(2));
            wait_for("all to reach each other", || {
                one.reaches(2) && two.reaches(1) && one.reaches(3) && reaches(3, 1)
            });
            let device = json_of(&one.inside("ip -j link show dev hpk-vxlan"));
            assert_eq!(device[0]["mtu"], 8950);
            let fits = |address: &str, size: usize| {
                succeeds(&one.inside(&format!("ping -q -c1 -W1 -M do -s {size} {address}")))
            };
            assert!(fits("10.244.2.0", 8922) && !fits("10.244.2.0", 8923));
            assert!(fits("fd00:244:0:2::", 8902) && !fits("fd00:244:0:2::", 8903));
            assert!(fits("10.244.3.0", 1422), "of a smaller link");
            assert!(!fits("10.244.3.0", 1423), "told by the route");

            let (bubble, other) = (one.inside_plain(), two.inside_plain());
            let sent = |what: &str| {
                metric(
                    1,
                    &format!("hpk_overlay_{what}_total{{direction=\"sent\"}}"),
                )
            };
            let before = (sent("bytes"), sent("frames"));
            bulk(&bubble, &other, "10.244.2.0", 24);
            let mean = (sent("bytes") - before.0) / (sent("frames") - before.1);
            assert!(mean > 6000, "{mean} bytes a frame");
            bulk(&other, &bubble, "fd00:244:0:1::", 24);
            bulk(&bubble, "ip netns exec n3", "10.244.3.0", 24);
            bulk("ip netns exec n3", &bubble, "10.244.1.0", 24);
            for namespace in [&bubble[..], &other, "ip netns exec n3"] {
                assert_eq!(wrong_checksums(namespace), "");
            }
        },
    );
}
