//! What every pod's worker shares: the node's configuration and its connections.

use std::net::IpAddr;

use hpk_shim_client::Bootstrap;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::reflector::Store;
use tokio::sync::watch;

use crate::access::Registry;
use crate::api::Reader;
use crate::config::Config;
use crate::devices::Devices;
use crate::env::Facts;
use crate::events::Recorder;
use crate::images::{Images, Witness};
use crate::network::Network;
use crate::node::standing::Standing;
use crate::pod::turns::Turns;
use crate::probes::tally::Tally;
use crate::spec::files::Resolver;
use crate::spec::hostname::{Names, TooLong, names};
use crate::spec::{Host, seccomp};
use crate::volumes::apply::Sources;

/// The node agent.
pub struct Agent {
    pub config: Config,
    /// For the node itself, for watches and for events, which are told one by one.
    pub client: Client,
    /// For each pod's own requests: so many at a time, and the others after them.
    pub pods_client: Client,
    pub reader: Reader,
    pub recorder: Recorder,
    pub images: Images,
    pub network: Network,
    pub turns: Turns,
    pub devices: Devices,
    pub bootstrap: Bootstrap,
    /// Services of all namespaces, for the variables they give.
    pub services: Store<Service>,
    pub host: Host,
    /// Facts of the node; a pod's addresses are added per pod.
    pub facts: Facts,
    pub registry: Registry,
    pub resolver: Resolver,
    /// The node's own /etc/hosts.
    pub hosts_file: String,
    /// The seccomp profile RuntimeDefault, or why there is none.
    pub seccomp: Result<seccomp::Profile, String>,
    pub started_at: Timestamp,
    /// Where cgroups of pods can be made, if anywhere.
    pub cgroups: Vec<hpk_cgroup::Hierarchy>,
    /// How probes have ended.
    pub probes: Tally,
    /// What the node can't give at present.
    pub standing: watch::Sender<Standing>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("node", &self.config.args.node_name)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// The facts as a pod with these addresses sees them.
    pub fn facts_for(&self, pod_ips: &[String]) -> Facts {
        Facts {
            pod_ips: pod_ips.to_vec(),
            ..self.facts.clone()
        }
    }

    /// Where volumes come from; `witness` makes whoever is told of an image's pull.
    pub fn volume_sources<'a>(
        &'a self,
        witness: &'a (dyn Fn(&str) -> Box<dyn Witness> + Sync),
    ) -> Sources<'a> {
        Sources {
            reader: &self.reader,
            images: &self.images,
            ids: &self.host.ids,
            recorder: &self.recorder,
            witness,
        }
    }

    /// What the pod is called.
    pub fn names(&self, pod: &Pod) -> Result<Names, TooLong> {
        let args = &self.config.args;
        names(pod, &args.cluster_domain, &args.node_name)
    }

    /// The node's addresses, the preferred first.
    pub fn node_ips(&self) -> &[IpAddr] {
        &self.config.args.node_ip
    }
}
