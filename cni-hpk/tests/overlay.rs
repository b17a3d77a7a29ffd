//! The overlay between three bubbles' namespaces on one switch, with a real
//! etcd over mutual TLS. `cargo test -p cni-hpk -- --ignored`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::{Running, inside, json_of, sh, succeeds, wait_for};

/// Three hosts on a switch at which etcd listens.
struct Site {
    etcd: Running,
    daemons: Vec<Running>,
}

/// UDP port of each host, and the one it is forwarded to.
const PORTS: [(u16, u16); 3] = [(8472, 8472), (9472, 9472), (12000, 10472)];

impl Site {
    fn new() -> Self {
        std::env::set_current_dir("/run").unwrap();
        sh("ip link add sw type bridge; ip address add 192.0.2.254/24 dev sw; ip link set sw up");
        for host in 1..=3 {
            sh(&format!(
                "ip netns add n{host}
                 ip link add v{host} type veth peer name ul netns n{host}
                 ip link set v{host} master sw up; ip -n n{host} link set lo up
                 ip -n n{host} address add 192.0.2.{host}/24 dev ul; ip -n n{host} link set ul up"
            ));
        }
        // What an uplink does: a port of the host is another in the bubble.
        std::fs::write(
            "/run/forward",
            "table ip uplink { chain pre { type nat hook prerouting priority -100; udp dport 12000 redirect to :10472; }; }",
        )
        .unwrap();
        sh("ip netns exec n3 nft -f /run/forward");
        sh("
            new='openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
            $new -x509 -keyout ca.key -out ca.pem -subj /CN=ca -days 2 2>/dev/null
            echo subjectAltName=IP:192.0.2.254 > ext
            for n in server client; do
              $new -keyout $n.key -out $n.csr -subj /CN=$n 2>/dev/null
              openssl x509 -req -in $n.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $n.pem 2>/dev/null
            done
        ");
        let mut site = Self {
            etcd: start_etcd(),
            daemons: Vec::new(),
        };
        for host in 1..=3 {
            let daemon = start_daemon(host, PORTS[host - 1].0, PORTS[host - 1].1);
            site.daemons.push(daemon);
        }
        for host in 1..=3 {
            lease(host, host);
        }
        site
    }

    fn restart(&mut self, host: usize, port: u16, listen: u16) {
        self.daemons[host - 1].kill();
        self.daemons[host - 1] = start_daemon(host, port, listen);
    }
}

fn lease(host: usize, subnet: usize) {
    let text = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{subnet}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    );
    std::fs::write(format!("/run/subnet{host}.part"), text).unwrap();
    std::fs::rename(
        format!("/run/subnet{host}.part"),
        format!("/run/subnet{host}.env"),
    )
    .unwrap();
}

fn start_etcd() -> Running {
    Running::start(
        "etcd --data-dir /run/etcd --listen-client-urls https://192.0.2.254:2379 \
         --advertise-client-urls https://192.0.2.254:2379 --listen-peer-urls http://127.0.0.1:2380 \
         --cert-file server.pem --key-file server.key --client-cert-auth --trusted-ca-file ca.pem \
         >>etcd.log 2>&1",
    )
}

fn start_daemon(host: usize, port: u16, listen: u16) -> Running {
    // `ip netns exec` execs: the process is the daemon itself.
    Running::start(&format!(
        "ip netns exec n{host} {daemon} overlay --etcd-endpoints https://192.0.2.254:2379 \
         --etcd-cacert ca.pem --etcd-cert client.pem --etcd-key client.key --node node{host} \
         --host-ip 192.0.2.{host} --subnet-file subnet{host}.env --state-file state{host}.json \
         --mode kernel --vni 4242 --mtu 1500 --udp-port {port} --listen-port {listen} \
         >>daemon{host}.log 2>&1",
        daemon = env!("CARGO_BIN_EXE_hpk-net-daemon"),
    ))
}

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

/// A host in mode `host`: its bubble is a user and network namespace of its
/// own behind an uplink, as Apptainer and pasta make it.
struct HostMode {
    bubble: Running,
    pid: u32,
    daemon: Running,
}

impl HostMode {
    fn start(host: usize) -> Self {
        let bubble = Running::start(&format!(
            "ip netns exec n{host} unshare --user --map-root-user --net sleep 1000"
        ));
        let pid = bubble.0.id();
        wait_for("the bubble", || {
            let own = sh(&format!("ip netns exec n{host} readlink /proc/self/ns/net"));
            sh(&format!("readlink /proc/{pid}/ns/net")) != own
                && sh(&format!("cat /proc/{pid}/comm")).trim() == "sleep"
        });
        std::fs::write(
            "/run/uplink",
            "table ip uplink { chain post { type nat hook postrouting priority 100; ip saddr 10.0.2.0/24 masquerade; }; }",
        )
        .unwrap();
        sh(&format!(
            "ip -n n{host} link add bub type veth peer name ul netns {pid}
             ip -n n{host} address add 10.0.2.2/24 dev bub; ip -n n{host} link set dev bub up
             ip netns exec n{host} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; nft -f uplink'"
        ));
        let this = Self {
            bubble,
            pid,
            daemon: Self::daemon(host, pid),
        };
        sh(&this.inside(
            "ip link set lo up; ip address add 10.0.2.100/24 dev ul; ip link set dev ul up; ip route add default via 10.0.2.2",
        ));
        lease(host, host);
        this
    }

    fn daemon(host: usize, pid: u32) -> Running {
        Running::start(&format!(
            "ip netns exec n{host} {daemon} overlay --etcd-endpoints https://192.0.2.254:2379 \
             --etcd-cacert ca.pem --etcd-cert client.pem --etcd-key client.key --node node{host} \
             --host-ip 192.0.2.{host} --subnet-file subnet{host}.env --state-file state{host}.json \
             --mode host --enter-pid {pid} --vni 4242 --mtu 1500 --udp-port {port} \
             >>daemon{host}.log 2>&1",
            daemon = env!("CARGO_BIN_EXE_hpk-net-daemon"),
            port = 7000 + host,
        ))
    }

    fn inside(&self, command: &str) -> String {
        format!(
            "nsenter --target {} --user --preserve-credentials --net sh -c '{command}'",
            self.pid
        )
    }

    fn reaches(&self, to: usize) -> bool {
        succeeds(&self.inside(&format!("ping -q -c1 -W1 10.244.{to}.0")))
    }
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

            // A stranger's datagram with all the right headers.
            let received = || {
                let link = json_of(&two.inside("ip -j -s link show dev hpk-vxlan"));
                link[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
            };
            let before = received();
            sh("ip netns exec n1 python3 -c '
import socket
h = bytes([8,0,0,0]) + (4242).to_bytes(3, \"big\") + bytes([0])
f = bytes.fromhex(\"0a580af40200\" + \"0a580af40100\" + \"0800\") + bytes(60)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(h + f, (\"192.0.2.2\", 7002))'");
            std::thread::sleep(std::time::Duration::from_millis(200));
            assert_eq!(received(), before, "from the right host but another port");

            // The bubble's end is the daemon's.
            one.bubble.kill();
            wait_for("the daemon to end", || {
                sh("cat daemon1.log").contains("the bubble has ended")
            });
        },
    );
}
