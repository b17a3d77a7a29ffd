//! The node-local folder, filled with what the bubble needs before it starts.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::binds::OWN_FOLDERS;
use crate::bubble::spec::{self, BubbleSpec};
use crate::cluster::{Cluster, Folder, Node};
use crate::files;
use crate::kubeconfig::{self, Access};
use crate::settings::{self, API_PORT};

/// Where the site's certificate authorities may be, the first that is there counts.
const TRUST_STORES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// Makes the folders in the node-local one.
pub fn make_folders(path: &Path) -> Result<()> {
    for (folder, _) in OWN_FOLDERS {
        files::make_private_dir(&path.join(folder))?;
    }
    for folder in [
        "log/pods",
        "log/containers",
        "run/flannel",
        "run/hpk",
        "run/lock",
        "pki",
        "logs",
    ] {
        files::make_private_dir(&path.join(folder))?;
    }
    for folder in ["tmp", "var-tmp"] {
        fs::set_permissions(path.join(folder), fs::Permissions::from_mode(0o1777))
            .with_context(|| format!("opening {folder} to the bubble's users"))?;
    }
    Ok(())
}

/// What of the PKI a node gets.
fn certificates(node: &Node, controller: bool) -> Vec<String> {
    let mut stems = vec![
        "etcd-client".to_owned(),
        "kube-proxy".into(),
        "admin".into(),
        format!("kubelet-{}", node.name),
        format!("kubelet-client-{}", node.name),
    ];
    let mut files = vec!["ca.crt".to_owned(), "etcd-ca.crt".into()];
    if controller {
        stems.extend(
            [
                "apiserver",
                "etcd",
                "apiserver-etcd-client",
                "front-proxy-client",
                "apiserver-kubelet-client",
                "controller-manager",
                "scheduler",
                "coredns",
            ]
            .map(str::to_owned),
        );
        files.extend(["ca.key", "front-proxy-ca.crt", "sa.key", "sa.pub"].map(str::to_owned));
    }
    for stem in stems {
        files.push(format!("{stem}.crt"));
        files.push(format!("{stem}.key"));
    }
    files
}

/// Who has a kubeconfig in the bubble: the file's name and the certificate's.
fn kubeconfigs(node: &Node, controller: bool) -> Vec<(String, String)> {
    let mut list = vec![
        ("kubeconfig".to_owned(), "admin".to_owned()),
        (
            "kubelet.kubeconfig".into(),
            format!("kubelet-client-{}", node.name),
        ),
        ("kube-proxy.kubeconfig".into(), "kube-proxy".into()),
    ];
    if controller {
        for name in ["controller-manager", "scheduler", "coredns"] {
            list.push((format!("{name}.kubeconfig"), name.into()));
        }
    }
    list
}

/// The API server as this node reaches it.
fn api_url(cluster: &Cluster, controller: bool) -> String {
    if controller {
        format!("https://127.0.0.1:{API_PORT}")
    } else {
        cluster.api_url()
    }
}

/// Writes everything into the folder.
pub fn fill(
    local: &Path,
    folder: &Folder,
    cluster: &Cluster,
    node: &Node,
    spec: &BubbleSpec,
    dns: Ipv4Addr,
) -> Result<()> {
    for name in certificates(node, spec.controller) {
        files::write_private(
            &local.join("pki").join(&name),
            folder.pem(&name)?.as_bytes(),
        )?;
    }
    let authority = folder.pem("ca.crt")?;
    for (file, stem) in kubeconfigs(node, spec.controller) {
        let access = Access {
            server: api_url(cluster, spec.controller),
            authority: authority.clone(),
            certificate: folder.pem(&format!("{stem}.crt"))?,
            key: folder.pem(&format!("{stem}.key"))?,
        };
        let text = kubeconfig::single(&kubeconfig::context_name(&cluster.id), &access)?;
        files::write_private(&local.join(file), text.as_bytes())?;
    }
    let write = |name: &str, text: String| {
        fs::write(local.join(name), text)
            .with_context(|| format!("writing {name} in {}", local.display()))
    };
    let host_resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    write("resolv.conf", resolver(&host_resolver, dns))?;
    write("hosts", hosts(cluster))?;
    write("cni.d/10-hpk.conflist", conflist()?)?;
    // flanneld takes the subnet that it finds here as the one that it had before.
    write(
        "run/flannel/subnet.env",
        format!("FLANNEL_SUBNET={}/24\n", bridge_address(spec)),
    )?;
    let spec_text = serde_json::to_vec_pretty(spec).context("writing bubble.json")?;
    files::write_private(&local.join(spec::FILE), &spec_text)
}

fn bridge_address(spec: &BubbleSpec) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(spec.subnet.network()) + 1)
}

/// The uplink's forwarder, and the site's search list and options.
fn resolver(host: &str, dns: Ipv4Addr) -> String {
    let mut text = format!("nameserver {dns}\n");
    for line in host.lines() {
        if line.starts_with("search ") || line.starts_with("options ") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn hosts(cluster: &Cluster) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    for node in &cluster.nodes {
        text.push_str(&format!("{} {}\n", node.ip(), node.name));
    }
    text
}

/// The pod network's conflist, as the brief of the parts fixes it.
fn conflist() -> Result<String> {
    let list = serde_json::json!({
        "cniVersion": "1.1.0",
        "name": "hpk",
        "plugins": [
            {
                "type": "cni-hpk",
                "subnetFile": "/run/flannel/subnet.env",
                "overlayFile": "/run/hpk/overlay.json",
                "bridge": "hpk-bridge",
                "datapath": "auto",
                "ipMasq": true,
                "dataDir": "/var/lib/hpk/cni",
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    serde_json::to_string_pretty(&list).context("writing the conflist")
}

/// The file with the site's certificate authorities, if it is where it usually is.
pub fn trust_store() -> Option<PathBuf> {
    TRUST_STORES
        .iter()
        .map(PathBuf::from)
        .find(|file| file.is_file())
}

/// With HPK_DEV=1: the programs beside this one, over the image's.
pub fn dev_programs(own: &Path) -> Vec<(PathBuf, PathBuf)> {
    if !settings::is_dev() {
        return Vec::new();
    }
    let Some(folder) = own.parent() else {
        return Vec::new();
    };
    let local_bin = [
        "hpk-kubelet",
        "hpk-net-daemon",
        "hpktainer",
        "hpk-pause",
        "hpk-logger",
        "containerd-shim-hpk-v2",
        "hpk-control-plane",
    ];
    local_bin
        .iter()
        .map(|name| (*name, "/usr/local/bin"))
        .chain([("cni-hpk", "/opt/cni/bin")])
        .map(|(name, place)| (folder.join(name), Path::new(place).join(name)))
        .filter(|(program, _)| program.is_file())
        .collect()
}

/// MTU of the host's link that has this address, in bytes.
pub fn link_mtu(address: Ipv4Addr) -> u32 {
    let of = |name: &str| -> Option<u32> {
        let text = fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok()?;
        text.trim().parse().ok()
    };
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    interfaces
        .filter(|interface| {
            interface
                .address
                .as_ref()
                .and_then(|have| have.as_sockaddr_in().map(|have| have.ip()))
                == Some(address)
        })
        .find_map(|interface| of(&interface.interface_name))
        .unwrap_or(1500)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node {
            name: "n2".into(),
            index: 2,
            subnet: "10.244.2.0/24".parse().unwrap(),
        }
    }

    #[test]
    fn a_node_gets_neither_an_authoritys_key_nor_another_nodes() {
        let files = certificates(&node(), false);
        assert!(
            files
                .iter()
                .all(|file| !file.ends_with("ca.key") && file != "sa.key")
        );
        assert!(files.contains(&"kubelet-client-n2.key".to_owned()));
        assert!(!files.contains(&"etcd.key".to_owned()));
    }

    #[test]
    fn the_resolver_keeps_the_sites_search_list() {
        let text = resolver(
            "nameserver 127.0.0.53\nsearch a.org\n",
            Ipv4Addr::new(10, 0, 2, 3),
        );
        assert_eq!(text, "nameserver 10.0.2.3\nsearch a.org\n");
    }

    #[test]
    fn only_the_folders_for_passing_files_are_open_to_the_bubbles_users() {
        let local = tempfile::tempdir().unwrap();
        make_folders(local.path()).unwrap();
        let mode = |name: &str| {
            local
                .path()
                .join(name)
                .metadata()
                .unwrap()
                .permissions()
                .mode()
        };
        assert_eq!(mode("tmp") & 0o7777, 0o1777);
        assert_eq!(mode("run/hpk") & 0o7777, 0o700);
    }
}
