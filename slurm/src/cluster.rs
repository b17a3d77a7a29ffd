//! A cluster's folder, `~/.hpk/clusters/ID`: what its hosts must know of each other.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::clock::now;
use crate::files;
use crate::ports::Ports;
use crate::settings::Network;

/// A node of the cluster: a host's bubble.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Slurm's node name.
    pub name: String,
    /// From 1; the bubble's number.
    pub index: usize,
    pub subnet: Ipv4Net,
}

impl Node {
    /// Its InternalIP: the first address of its subnet, on the overlay device.
    pub fn ip(&self) -> Ipv4Addr {
        self.subnet.network()
    }
}

/// What `launch` decides and every host reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: String,
    /// Slurm's cluster, whose numbers of jobs are its own; None where nothing says so: outside any job, or before there was
    /// this field.
    pub slurm: Option<String>,
    /// The address of the controller's host, for other hosts.
    pub controller_address: Ipv4Addr,
    pub ports: Ports,
    /// Where `launch` hands the ports' sockets over, on the controller's host; None when nobody
    /// holds them.
    pub handover: Option<PathBuf>,
    pub network: Network,
    /// What the bubbles start from: a SIF, a squashfs or a folder that all hosts see.
    pub image: PathBuf,
    /// VXLAN network identifier, random, so that neighbours' overlays don't meet.
    pub vni: u32,
    /// The controller first.
    pub nodes: Vec<Node>,
    /// Seconds since 1970: when the job began and when its time is over.
    pub began: Option<i64>,
    pub ends: Option<i64>,
}

impl Cluster {
    /// The nodes of a cluster on these hosts, the first of which is the controller.
    pub fn plan_nodes(id: &str, hosts: &[String], network: &Network) -> Result<Vec<Node>> {
        if id.is_empty()
            || !id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        {
            bail!("the cluster's name {id:?} has more than letters, digits, - and _");
        }
        hosts
            .iter()
            .enumerate()
            .map(|(position, name)| {
                let index = position + 1;
                let subnet = network.subnet(index).with_context(|| {
                    format!("{} has no subnet for node {index}, {name}", network.pods)
                })?;
                Ok(Node {
                    name: name.clone(),
                    index,
                    subnet,
                })
            })
            .collect()
    }

    pub fn controller(&self) -> Result<&Node> {
        self.nodes.first().context("the cluster has no node")
    }

    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("host {name} is none of cluster {}'s", self.id))
    }

    /// The API server as hosts and bubbles other than the controller's reach it.
    pub fn api_url(&self) -> String {
        format!(
            "https://{}:{}",
            self.controller_address, self.ports.apiserver
        )
    }

    pub fn etcd_url(&self) -> String {
        format!("https://{}:{}", self.controller_address, self.ports.etcd)
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn of(hpk_home: &Path, id: &str) -> Self {
        Self(hpk_home.join("clusters").join(id))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    /// Where a node's logs are copied when it ends.
    pub fn logs(&self, node: &str) -> PathBuf {
        self.0.join("logs").join(node)
    }

    /// Where the path of the bubble's node-local folder on that host is written down.
    pub fn local_record(&self, host: &str) -> PathBuf {
        self.0.join("local").join(host)
    }

    /// Writes everything; `pems` are the PKI's files.
    pub fn write(&self, cluster: &Cluster, pems: &[(String, String)]) -> Result<()> {
        if let Some(theirs) = self
            .anothers(cluster.slurm.as_deref(), now())
            .filter(|_| self.pki().exists())
        {
            bail!(
                "{} is of a job of Slurm's cluster {theirs} with the same number: submit anew, or remove it if that job has ended",
                self.0.display()
            );
        }
        files::make_private_dir(&self.pki())?;
        // A requeued job has the same number, and a cause of its own.
        self.forget_cause()?;
        files::make_private_dir(&self.0.join("logs"))?;
        for (name, text) in pems {
            files::write_private(&self.pki().join(name), text.as_bytes())?;
        }
        self.write_json("ports.json", &cluster.ports)?;
        self.write_json("cluster.json", cluster)
    }

    /// The cluster of Slurm's that alone knows whether this cluster's job still runs, if it isn't `slurm`: where several share
    /// a home. A month after the job's end it is anybody's to remove. (What can't be read is no running job's.)
    pub fn anothers(&self, slurm: Option<&str>, now: i64) -> Option<String> {
        const MONTH: i64 = 30 * 86_400;
        let cluster = self.read().ok()?;
        let is_over = cluster.ends.is_some_and(|ends| ends + MONTH < now);
        cluster
            .slurm
            .filter(|theirs| slurm != Some(theirs) && !is_over)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec_pretty(value).with_context(|| format!("writing {name}"))?;
        files::write_private(&self.0.join(name), &text)
    }

    pub fn read(&self) -> Result<Cluster> {
        let path = self.0.join("cluster.json");
        serde_json::from_str(&files::read(&path)?)
            .with_context(|| format!("{} is not as `launch` writes it", path.display()))
    }

    pub fn pem(&self, name: &str) -> Result<String> {
        files::read(&self.pki().join(name))
    }

    /// Says why the cluster ended; the first cause stays.
    pub fn write_cause(&self, cause: &str) -> Result<()> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.0.join("cause");
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match file {
            Ok(mut file) => writeln!(file, "{}", cause.replace('\n', " "))
                .with_context(|| format!("writing {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error).with_context(|| format!("writing {}", path.display())),
        }
    }

    fn forget_cause(&self) -> Result<()> {
        let path = self.0.join("cause");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    pub fn cause(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.0.join("cause")).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// Removes the secrets, and keeps the logs.
    pub fn remove_secrets(&self) -> Result<()> {
        match std::fs::remove_dir_all(self.pki()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.pki().display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network {
            pods: "10.244.0.0/22".parse().unwrap(),
            services: "10.43.0.0/16".parse().unwrap(),
            domain: "cluster.local".into(),
        }
    }

    #[test]
    fn each_node_gets_a_subnet_and_its_first_address() {
        let hosts = ["a".to_owned(), "b".to_owned()];
        let nodes = Cluster::plan_nodes("7", &hosts, &network()).unwrap();
        assert_eq!(nodes[1].index, 2);
        assert_eq!(nodes[1].ip().to_string(), "10.244.2.0");
    }

    #[test]
    fn more_nodes_than_subnets_is_refused() {
        let hosts: Vec<_> = (0..4).map(|n| format!("n{n}")).collect();
        let error = Cluster::plan_nodes("7", &hosts, &network()).unwrap_err();
        assert!(error.to_string().contains("n3"), "{error}");
    }

    #[test]
    fn a_name_that_would_leave_the_folder_is_refused() {
        assert!(Cluster::plan_nodes("../x", &[], &network()).is_err());
    }

    #[test]
    fn the_job_of_another_cluster_of_slurms_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::of(home.path(), "7");
        let of = |slurm: &str| Cluster {
            id: "7".into(),
            slurm: Some(slurm.into()),
            controller_address: Ipv4Addr::LOCALHOST,
            ports: Ports {
                apiserver: 1,
                etcd: 2,
            },
            handover: None,
            network: network(),
            image: "/x.sif".into(),
            vni: 1,
            nodes: Vec::new(),
            began: None,
            ends: None,
        };
        folder.write(&of("a"), &[]).unwrap();
        folder.write_cause("killed").unwrap();
        let error = folder.write(&of("b"), &[]).unwrap_err();
        assert!(error.to_string().contains("cluster a"), "{error}");
        let anothers = |slurm, now| folder.anothers(slurm, now);
        assert_eq!(anothers(Some("b"), 2000).as_deref(), Some("a"));
        assert_eq!(anothers(None, 2000).as_deref(), Some("a"));
        assert_eq!(anothers(Some("a"), 2000), None);
        // Requeued.
        folder.write(&of("a"), &[]).unwrap();
        assert_eq!(folder.cause(), None);
        folder.remove_secrets().unwrap();
        folder.write(&of("b"), &[]).unwrap();
        // It is known when it was to end.
        let ends = Some(1000);
        folder.write(&Cluster { ends, ..of("b") }, &[]).unwrap();
        assert_eq!(anothers(Some("a"), 2000).as_deref(), Some("b"));
        assert_eq!(anothers(Some("a"), 1000 + 31 * 86_400), None);
    }

    #[test]
    fn the_first_cause_stays() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::of(home.path(), "7");
        files::make_private_dir(folder.path()).unwrap();
        folder.write_cause("etcd: no\nspace").unwrap();
        folder.write_cause("cancelled").unwrap();
        assert_eq!(folder.cause().unwrap(), "etcd: no space");
    }
}
