//! Bubbles' namespaces on one switch, with a real etcd over mutual TLS.

use super::{Running, sh, succeeds, wait_for};

/// Three hosts on a switch at which etcd listens.
pub struct Site {
    pub etcd: Running,
    pub daemons: Vec<Running>,
}

/// UDP port of each host, and the one it is forwarded to.
const PORTS: [(u16, u16); 3] = [(8472, 8472), (9472, 9472), (12000, 10472)];

impl Site {
    pub fn new() -> Self {
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

    pub fn restart(&mut self, host: usize, port: u16, listen: u16) {
        self.daemons[host - 1].kill();
        self.daemons[host - 1] = start_daemon(host, port, listen);
    }
}

pub fn lease(host: usize, subnet: usize) {
    let text = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{subnet}.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:{subnet}::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    );
    std::fs::write(format!("/run/subnet{host}.part"), text).unwrap();
    std::fs::rename(
        format!("/run/subnet{host}.part"),
        format!("/run/subnet{host}.env"),
    )
    .unwrap();
}

pub fn start_etcd() -> Running {
    Running::start(
        "etcd --data-dir /run/etcd --listen-client-urls https://192.0.2.254:2379 \
         --advertise-client-urls https://192.0.2.254:2379 --listen-peer-urls http://127.0.0.1:2380 \
         --cert-file server.pem --key-file server.key --client-cert-auth --trusted-ca-file ca.pem \
         >>etcd.log 2>&1",
    )
}

pub fn start_daemon(host: usize, port: u16, listen: u16) -> Running {
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

/// Where a daemon of mode `host` is said to be, and the MTU of its host's link.
#[derive(Clone, Debug)]
pub struct Place {
    pub address: String,
    pub port: usize,
    pub mtu: usize,
}

impl Place {
    pub fn of(host: usize) -> Self {
        Self {
            address: format!("192.0.2.{host}"),
            port: 7000 + host,
            mtu: 1500,
        }
    }
}

/// A host in mode `host`: its bubble is a user and network namespace of its
/// own behind an uplink, as Apptainer and pasta make it.
pub struct HostMode {
    pub bubble: Running,
    pub pid: u32,
    pub daemon: Running,
}

impl HostMode {
    pub fn start(host: usize) -> Self {
        Self::start_at(host, &Place::of(host))
    }

    pub fn start_at(host: usize, place: &Place) -> Self {
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
            daemon: Self::daemon_at(host, pid, place),
        };
        sh(&this.inside(
            "ip link set lo up; ip address add 10.0.2.100/24 dev ul; ip link set dev ul up; ip route add default via 10.0.2.2",
        ));
        lease(host, host);
        this
    }

    pub fn daemon(host: usize, pid: u32) -> Running {
        Self::daemon_at(host, pid, &Place::of(host))
    }

    pub fn daemon_at(host: usize, pid: u32, place: &Place) -> Running {
        let Place { address, port, mtu } = place;
        Running::start(&format!(
            "ip netns exec n{host} {daemon} overlay --etcd-endpoints https://192.0.2.254:2379 \
             --etcd-cacert ca.pem --etcd-cert client.pem --etcd-key client.key --node node{host} \
             --host-ip {address} --subnet-file subnet{host}.env --state-file state{host}.json \
             --mode host --enter-pid {pid} --vni 4242 --mtu {mtu} --socket-buffer 106496 --queues 2 --udp-port {port} \
             >>daemon{host}.log 2>&1",
            daemon = env!("CARGO_BIN_EXE_hpk-net-daemon"),
        ))
    }

    pub fn inside(&self, command: &str) -> String {
        format!(
            "nsenter --target {} --user --preserve-credentials --net sh -c '{command}'",
            self.pid
        )
    }

    /// The same for a command without quotes.
    pub fn inside_plain(&self) -> String {
        format!(
            "nsenter --target {} --user --preserve-credentials --net",
            self.pid
        )
    }

    pub fn reaches(&self, to: usize) -> bool {
        succeeds(&self.inside(&format!("ping -q -c1 -W1 10.244.{to}.0")))
    }
}
