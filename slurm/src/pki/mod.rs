//! The cluster's certificates: which there are, for whom, and issuing them.
//!
//! Three authorities, so that a certificate of one realm opens nothing in another: the cluster's,
//! etcd's, and the front proxy's (aggregated APIs). Keys are ECDSA P-256; certificates end a day
//! after the job's time, since the cluster doesn't outlive the job.

mod issue;

use std::net::IpAddr;

pub use issue::{issue, last_day};

/// The common names of etcd's clients, by which it tells them apart.
pub const ETCD_API_USER: &str = "kube-apiserver";
pub const ETCD_NODE_USER: &str = "hpk-node";

/// Who signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    Cluster,
    Etcd,
    FrontProxy,
}

impl Authority {
    /// The name of its files, without suffix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "ca",
            Self::Etcd => "etcd-ca",
            Self::FrontProxy => "front-proxy-ca",
        }
    }

    const ALL: [Self; 3] = [Self::Cluster, Self::Etcd, Self::FrontProxy];
}

/// A certificate to issue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The name of its files, without suffix.
    pub name: String,
    pub authority: Authority,
    pub common_name: String,
    pub organization: Option<&'static str>,
    /// DNS names and addresses of a server.
    pub names: Vec<String>,
    pub server: bool,
    pub client: bool,
}

/// A node, as its certificates name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeNames {
    pub name: String,
    pub node_ip: IpAddr,
}

/// The controller's names and addresses, beyond those that every cluster has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    pub names: Vec<String>,
    pub domain: String,
    pub kubernetes_ip: IpAddr,
}

/// All certificates of a cluster.
pub fn plan_certificates(controller: &Controller, nodes: &[NodeNames]) -> Vec<Wanted> {
    use Authority::{Cluster, Etcd, FrontProxy};
    let mut api_names: Vec<String> = vec!["kubernetes".into(), "kubernetes.default".into()];
    api_names.push("kubernetes.default.svc".into());
    api_names.push(format!("kubernetes.default.svc.{}", controller.domain));
    api_names.push(controller.kubernetes_ip.to_string());
    let local = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let host_names = || controller.names.iter().chain(&local).cloned();
    let mut wanted = vec![
        server(
            "apiserver",
            Cluster,
            "kube-apiserver",
            host_names().chain(api_names),
        ),
        Wanted {
            client: true, // a member is its own peer, and checks itself as a client
            ..server("etcd", Etcd, "etcd", host_names())
        },
        client("apiserver-etcd-client", Etcd, ETCD_API_USER),
        client("etcd-client", Etcd, ETCD_NODE_USER),
        client("front-proxy-client", FrontProxy, "front-proxy-client"),
        Wanted {
            organization: Some("system:masters"),
            ..client(
                "apiserver-kubelet-client",
                Cluster,
                "kube-apiserver-kubelet-client",
            )
        },
        Wanted {
            organization: Some("system:masters"),
            ..client("admin", Cluster, "kubernetes-admin")
        },
        client(
            "controller-manager",
            Cluster,
            "system:kube-controller-manager",
        ),
        client("scheduler", Cluster, "system:kube-scheduler"),
        client("kube-proxy", Cluster, "system:kube-proxy"),
        client("coredns", Cluster, "system:coredns"),
    ];
    for node in nodes {
        wanted.push(Wanted {
            organization: Some("system:nodes"),
            ..client(
                &format!("kubelet-client-{}", node.name),
                Cluster,
                &format!("system:node:{}", node.name),
            )
        });
        wanted.push(Wanted {
            organization: Some("system:nodes"),
            ..server(
                &format!("kubelet-{}", node.name),
                Cluster,
                &format!("system:node:{}", node.name),
                [node.name.clone(), node.node_ip.to_string()].into_iter(),
            )
        });
    }
    wanted
}

fn client(name: &str, authority: Authority, common_name: &str) -> Wanted {
    Wanted {
        name: name.into(),
        authority,
        common_name: common_name.into(),
        organization: None,
        names: Vec::new(),
        server: false,
        client: true,
    }
}

fn server(
    name: &str,
    authority: Authority,
    common_name: &str,
    names: impl Iterator<Item = String>,
) -> Wanted {
    let mut all: Vec<String> = Vec::new();
    for name in names {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    Wanted {
        names: all,
        server: true,
        client: false,
        ..client(name, authority, common_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn planned() -> Vec<Wanted> {
        let controller = Controller {
            names: vec!["node1".into(), "10.99.0.11".into()],
            domain: "cluster.local".into(),
            kubernetes_ip: "10.43.0.1".parse().unwrap(),
        };
        let nodes = [NodeNames {
            name: "node1".into(),
            node_ip: "10.244.1.0".parse().unwrap(),
        }];
        plan_certificates(&controller, &nodes)
    }

    fn find(name: &str) -> Wanted {
        planned().into_iter().find(|one| one.name == name).unwrap()
    }

    #[test]
    fn the_api_server_has_every_name_it_is_called_by() {
        let names = find("apiserver").names;
        for name in [
            "node1",
            "10.99.0.11",
            "127.0.0.1",
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "10.43.0.1",
        ] {
            assert!(names.iter().any(|have| have == name), "{name} is missing");
        }
    }

    #[test]
    fn a_kubelets_two_certificates_are_for_one_use_each() {
        let client = find("kubelet-client-node1");
        let server = find("kubelet-node1");
        assert!(client.client && !client.server && server.server && !server.client);
        assert_eq!(client.common_name, "system:node:node1");
        assert_eq!(client.organization, Some("system:nodes"));
        assert_eq!(server.names, ["node1", "10.244.1.0"]);
    }

    #[test]
    fn every_certificate_of_etcd_is_from_etcds_own_authority() {
        for one in planned() {
            assert_eq!(
                one.name.contains("etcd"),
                one.authority == Authority::Etcd,
                "{}",
                one.name
            );
        }
    }
}
