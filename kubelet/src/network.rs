//! A pod's network: a pinned namespace and a CNI attachment.

use std::path::{Path, PathBuf};

use hpk_cni_client::{Attachment, Client, NetworkList, netns};
use k8s_openapi::api::core::v1::Pod;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use thiserror::Error;

use crate::config::Args;
use crate::spec::linux::{Side, sysctls};

/// The interface in every pod.
const INTERFACE: &str = "eth0";

#[derive(Debug, Error)]
pub enum Error {
    #[error("can't load the network configuration in {dir}")]
    Config {
        dir: PathBuf,
        #[source]
        source: Box<hpk_cni_client::Error>,
    },
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    #[error("can't set sysctl {name} in the pod's network namespace")]
    Sysctl {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("plugin failed (add)")]
    Add(#[source] Box<hpk_cni_client::Error>),
    #[error("plugin failed (delete)")]
    Delete(#[source] Box<hpk_cni_client::Error>),
    #[error("plugin failed (gc)")]
    Collect(#[source] Box<hpk_cni_client::Error>),
    #[error("the network plugin gave no address")]
    NoAddress,
}

/// The CNI side of the node.
#[derive(Debug)]
pub struct Network {
    client: Client,
    conf_dir: PathBuf,
    netns_dir: PathBuf,
}

impl Network {
    pub fn new(args: &Args) -> Self {
        Self {
            client: Client::new(args.cni_bin_dir.clone(), args.cni_cache_dir.clone()),
            conf_dir: args.cni_conf_dir.clone(),
            netns_dir: args.netns_dir.clone(),
        }
    }

    /// Read anew for each use: the network may be configured after the kubelet starts.
    fn list(&self) -> Result<NetworkList, Error> {
        NetworkList::load_default(&self.conf_dir).map_err(|source| Error::Config {
            dir: self.conf_dir.clone(),
            source: Box::new(source),
        })
    }

    /// Whether pods can be given a network, as the node's Ready condition says it.
    pub fn is_configured(&self) -> Result<(), Error> {
        self.list().map(drop)
    }

    /// The path a sandbox's namespace is pinned at.
    pub fn netns_path(&self, sandbox: &str) -> PathBuf {
        let short: String = sandbox.chars().take(16).collect();
        self.netns_dir.join(format!("hpk-{short}"))
    }

    /// Makes the namespace and sets the pod's sysctls in it.
    pub async fn create_namespace(&self, path: &Path, pod: &Pod) -> Result<(), Error> {
        netns::create(path)?;
        let wanted = sysctls(pod, Side::Network);
        // Optional where a bubble's /proc/sys is read-only; the pod's own must be honoured.
        let asked = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.security_context.as_ref())
            .and_then(|context| context.sysctls.clone())
            .unwrap_or_default();
        let path = path.to_owned();
        let outcome = tokio::task::spawn_blocking(move || write_sysctls(&path, &wanted)).await;
        match outcome {
            Ok(Err((name, source))) if asked.iter().any(|sysctl| sysctl.name == name) => {
                Err(Error::Sysctl { name, source })
            }
            Ok(Err((name, source))) => {
                tracing::debug!(name, %source, "a default sysctl can't be set");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Attaches the namespace; the pod's addresses.
    pub async fn attach(
        &self,
        sandbox: &str,
        netns: &Path,
        pod: &Pod,
        port_mappings: &[Value],
    ) -> Result<Vec<String>, Error> {
        let meta = &pod.metadata;
        let identity = Identity {
            namespace: meta.namespace.as_deref().unwrap_or_default(),
            name: meta.name.as_deref().unwrap_or_default(),
            uid: meta.uid.as_deref().unwrap_or_default(),
        };
        let attachment = attachment(sandbox, netns, &identity, port_mappings);
        let result = self
            .client
            .add(&self.list()?, &attachment)
            .await
            .map_err(|error| Error::Add(Box::new(error)))?;
        let ips: Vec<String> = result
            .ips
            .iter()
            .map(|ip| ip.address.addr().to_string())
            .collect();
        if ips.is_empty() {
            return Err(Error::NoAddress);
        }
        Ok(ips)
    }

    /// Detaches the namespace and removes it. One that is gone is fine.
    pub async fn detach(
        &self,
        sandbox: &str,
        netns: &Path,
        identity: &Identity<'_>,
        port_mappings: &[Value],
    ) -> Result<(), Error> {
        // Plugins take an empty path for a namespace that is gone, or was never pinned.
        let pinned = netns::is_pinned(netns).unwrap_or(true);
        let path = if pinned { netns } else { Path::new("") };
        let attachment = attachment(sandbox, path, identity, port_mappings);
        self.client
            .del(&self.list()?, &attachment)
            .await
            .map_err(|error| Error::Delete(Box::new(error)))?;
        Ok(netns::remove(netns)?)
    }

    /// Releases what attachments of sandboxes other than these still hold.
    pub async fn collect(&self, valid: &[String]) -> Result<(), Error> {
        let valid: Vec<(String, String)> = valid
            .iter()
            .map(|sandbox| (sandbox.clone(), INTERFACE.to_owned()))
            .collect();
        self.client
            .gc(&self.list()?, &valid)
            .await
            .map_err(|error| Error::Collect(Box::new(error)))
    }
}

/// Who a sandbox belongs to, as plugins are told.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
}

fn attachment(
    sandbox: &str,
    netns: &Path,
    identity: &Identity<'_>,
    port_mappings: &[Value],
) -> Attachment {
    let args = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", identity.namespace),
        ("K8S_POD_NAME", identity.name),
        ("K8S_POD_INFRA_CONTAINER_ID", sandbox),
        ("K8S_POD_UID", identity.uid),
    ];
    let mut capability_args = serde_json::Map::new();
    if !port_mappings.is_empty() {
        capability_args.insert(
            "portMappings".to_owned(),
            Value::from(port_mappings.to_vec()),
        );
    }
    Attachment {
        container_id: sandbox.to_owned(),
        netns: netns.to_owned(),
        ifname: INTERFACE.to_owned(),
        args: args
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        capability_args,
    }
}

/// The `portMappings` capability: every port with a hostPort.
pub fn port_mappings(pod: &Pod) -> Vec<Value> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let host_port = port.host_port.filter(|port| *port > 0)?;
            Some(json!({
                "hostPort": host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                "hostIP": port.host_ip.clone().unwrap_or_default(),
            }))
        })
        .collect()
}

/// Enters the namespace on a thread that ends with it.
fn write_sysctls(
    netns: &Path,
    wanted: &std::collections::HashMap<String, String>,
) -> Result<(), (String, std::io::Error)> {
    let first = |error: std::io::Error| (wanted.keys().next().cloned().unwrap_or_default(), error);
    let file = std::fs::File::open(netns).map_err(first)?;
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| first(errno.into()))?;
            for (name, value) in wanted {
                let path = Path::new("/proc/sys").join(name.replace('.', "/"));
                std::fs::write(path, value).map_err(|error| (name.clone(), error))?;
            }
            Ok(())
        });
        worker
            .join()
            .unwrap_or_else(|_| Err(first(std::io::Error::other("the thread panicked"))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ports_with_a_host_port_are_mapped() {
        let pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [
            {"name": "c", "ports": [{"containerPort": 80}, {"containerPort": 53, "hostPort": 5353, "protocol": "UDP"}]}]}}))
        .expect("pod");
        let mappings = port_mappings(&pod);
        assert_eq!(mappings.len(), 1);
        assert_eq!(mappings[0]["protocol"], "udp");
    }
}
