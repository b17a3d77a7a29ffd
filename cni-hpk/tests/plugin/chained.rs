//! The plugin in a chain with the stock ones, under our own client; the stock
//! `bridge` first, through the same case.

use std::path::Path;

use hpk_cni_client::{Attachment, Client, NetworkList};
use hpk_cni_types::conf;
use serde_json::{Value, json};

use super::support::{Running, inside, json_of, netns, plugin_path, sh, succeeds, wait_for};

/// Without `portmap`, whose own CHECK fails after the stock `bridge` too (it
/// looks for IPv6 rules that it hasn't made).
fn checked(list: &NetworkList) -> NetworkList {
    let mut list = list.clone().into_inner();
    list.plugins.retain(|plugin| plugin["type"] != "portmap");
    list.into()
}

fn list(version: &str, main: Value) -> NetworkList {
    let mut plugins = json!([
        main,
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}, "mtu": 1400},
    ]);
    // The stock firewall plugin doesn't speak 0.3.1.
    if version != "0.3.1" {
        let firewall = json!({"type": "firewall", "backend": "iptables"});
        plugins.as_array_mut().unwrap().push(firewall);
    }
    let json = json!({"cniVersion": version, "name": "chain", "plugins": plugins});
    conf::NetworkList::parse(json.to_string().as_bytes())
        .unwrap()
        .into()
}

fn bridge() -> Value {
    json!({
        "type": "bridge", "bridge": "ref0", "isGateway": true, "ipMasq": true, "mtu": 1450,
        "ipam": {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": "/run/cni/networks",
                 "routes": [{"dst": "0.0.0.0/0"}]},
    })
}

fn own() -> Value {
    json!({"type": "cni-hpk", "subnet": "10.77.0.0/24", "dataDir": "/run/cni", "mtu": 1450})
}

fn attachment() -> Attachment {
    let capability_args = json!({
        "portMappings": [{"hostPort": 8088, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 100_000_000, "ingressBurst": 8_000_000},
    });
    Attachment {
        container_id: "pod".to_owned(),
        netns: "/run/netns/pod".into(),
        ifname: "eth0".to_owned(),
        args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
        capability_args: capability_args.as_object().unwrap().clone(),
    }
}

/// One turn of an attachment in a chain of four.
async fn turn(client: &Client, list: &NetworkList) {
    let version = list.cni_version;
    let attachment = attachment();
    netns("pod");
    let result = client.add(list, &attachment).await.unwrap();
    let address = result.pod_ip().unwrap().to_string();
    assert_eq!(
        sh("ip netns exec pod cat /proc/sys/net/ipv4/conf/eth0/arp_filter").trim(),
        "1"
    );
    let host = json_of("ip -j link show type veth");
    let host = host[0]["ifname"].as_str().unwrap();
    assert!(
        sh(&format!("tc qdisc show dev {host}")).contains("tbf"),
        "{version}"
    );
    let filtered = sh("iptables-save -t filter").contains(&address);
    assert_eq!(filtered, version.has_check(), "{version}: firewall");
    let _server =
        Running::start("ip netns exec pod python3 -m http.server 80 --directory /run/netns");
    wait_for("the server", || {
        succeeds("ip netns exec pod ss -ltn | grep -q :80")
    });
    sh("ip address add 192.0.2.1/32 dev lo 2>/dev/null || true");
    let get =
        "python3 -c 'import urllib.request as u; u.urlopen(\"http://192.0.2.1:8088/\", timeout=5)'";
    assert!(succeeds(get), "{version}: the host's port");
    if version.has_check() {
        client.check(&checked(list), &attachment).await.unwrap();
    }
    client.del(list, &attachment).await.unwrap();
    client.del(list, &attachment).await.unwrap();
    assert!(!succeeds(get), "{version}: the host's port after DEL");
    assert_eq!(sh("ip -br link show type veth").trim(), "");
    assert_eq!(sh("find /run/cni -name '10.77.*'").trim(), "");
    assert!(!sh("iptables-save").contains(&address), "{version}: rules");
    sh("umount /run/netns/pod; rm /run/netns/pod");
}

#[test]
#[ignore = "needs user namespaces, iproute2, nft, iptables and the reference plugins"]
fn portmap_bandwidth_tuning_and_firewall_work_after_it_in_every_version() {
    let name = "chained::portmap_bandwidth_tuning_and_firewall_work_after_it_in_every_version";
    inside(name, || {
        let folders = std::env::split_paths(&plugin_path()).collect();
        let client = Client::new(folders, Path::new("/run/cache").to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let newest = sh(
            "echo '{\"cniVersion\":\"1.0.0\"}' | CNI_COMMAND=VERSION CNI_PATH=/x $(ls /opt/cni/bin/portmap /usr/lib/cni/portmap 2>/dev/null | head -1)",
        );
        for main in [bridge(), own()] {
            for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                // Debian 12's reference plugins end with 1.0.0.
                if newest.contains(version) {
                    runtime.block_on(turn(&client, &list(version, main.clone())));
                }
            }
            sh("ip link del ref0 2>/dev/null || true");
        }
    });
}
