//! The order in which a node's daemons start: each step waits for a condition, never for a time.
//!
//! Controller: etcd → flannel's network in etcd → flanneld and API server → overlay → the other
//! daemons. Node: network seen in etcd → flanneld → overlay → API server seen → the other daemons.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::sync::mpsc;

use super::daemons::{self, OVERLAY_FILE, SUBNET_FILE};
use super::process::Supervisor;
use super::spec::{BubbleSpec, OverlayMode};
use super::{api, etcd, uplink, volumes};
use crate::files;
use crate::link::Report;
use crate::settings::BUBBLE_ROOT;

/// The first pause between two looks, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Looks until the condition holds, or `limit` is over. The pauses grow by half.
pub async fn until<F, T>(limit: Duration, what: &str, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let start = Instant::now();
    let mut pause = PAUSES.0;
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => {
                bail!("waited {} s for {what}: {error:#}", limit.as_secs())
            }
            Err(_) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 3 / 2).min(PAUSES.1);
            }
        }
    }
}

/// Starts a node's daemons. Returns when all run; on the controller, when all nodes are Ready.
#[derive(Debug)]
pub struct Order<'a> {
    pub spec: &'a BubbleSpec,
    pub supervisor: &'a Supervisor,
    pub reports: mpsc::UnboundedSender<Report>,
    pub began: Instant,
}

impl Order<'_> {
    pub async fn run(&self) -> Result<()> {
        if self.spec.controller {
            self.supervisor.keep(daemons::etcd(self.spec));
            self.until("etcd", || etcd::set_up(self.spec)).await?;
            self.done("etcd answers");
            self.supervisor.keep(daemons::apiserver(self.spec));
        } else {
            self.until("etcd on the controller", || etcd::see_network(self.spec))
                .await?;
            self.done("etcd on the controller answers");
        }
        self.start_network().await?;
        let client = api::client().await?;
        self.until("the API server", || api::is_ready(&client))
            .await?;
        self.done("the API server is ready");
        if self.spec.controller {
            self.supervisor.keep(daemons::controller_manager(self.spec));
            self.supervisor.keep(daemons::scheduler(self.spec));
        }
        self.supervisor.keep(daemons::kubelet(self.spec));
        let kernel = files::read(Path::new("/proc/sys/kernel/osrelease"))?;
        self.supervisor
            .keep(daemons::kube_proxy(self.spec, &kernel));
        if self.spec.controller {
            self.start_dns(&client).await?;
            self.until("the default StorageClass", || async {
                Ok(volumes::apply_class(&client).await?)
            })
            .await?;
            tokio::spawn(volumes::run(client.clone(), self.spec.volumes.clone()));
            self.until("pods to be admitted", || api::admits_pods(&client))
                .await?;
            self.until("all nodes to be Ready", || self.all_ready(&client))
                .await?;
            self.send(Report::Ready {
                nodes: self.spec.nodes.len(),
            });
        }
        Ok(())
    }

    /// Each step has its time, the first of a node included, which waits for the controller.
    async fn until<F, T>(&self, what: &str, look: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        until(Duration::from_secs(self.spec.step_seconds), what, look).await
    }

    async fn start_network(&self) -> Result<()> {
        self.until("the uplink", || async { uplink::address() })
            .await?;
        self.supervisor.keep(daemons::flanneld(self.spec));
        let lease = self.until("flanneld's lease", || async { lease() }).await?;
        // Certificates and advertised addresses stand on it; flanneld takes the subnet that it
        // is offered unless another node has it.
        let wanted = format!(
            "{}/24",
            self.spec.subnet.hosts().next().context("empty subnet")?
        );
        if lease != wanted {
            bail!("flanneld leased {lease} instead of {wanted}");
        }
        match self.spec.overlay {
            OverlayMode::Kernel { udp_port } => self
                .supervisor
                .keep(daemons::net_daemon(self.spec, udp_port)),
            OverlayMode::Host => self.send(Report::Leased),
        }
        self.until("the overlay", || async {
            files::read(Path::new(OVERLAY_FILE)).map(drop)
        })
        .await?;
        self.supervisor.keep(daemons::relay());
        self.done("the pod network is up");
        Ok(())
    }

    async fn start_dns(&self, client: &kube::Client) -> Result<()> {
        let corefile = daemons::corefile(self.spec.node_ip(), &self.spec.network.domain);
        files::write_private(
            &Path::new(BUBBLE_ROOT).join("Corefile"),
            corefile.as_bytes(),
        )?;
        self.until("cluster DNS's objects", || {
            api::apply_dns(client, self.spec)
        })
        .await?;
        self.supervisor.keep(daemons::coredns(self.spec));
        Ok(())
    }

    async fn all_ready(&self, client: &kube::Client) -> Result<()> {
        let unready = api::unready_nodes(client, &self.spec.nodes).await?;
        if unready.is_empty() {
            return Ok(());
        }
        bail!("not Ready: {}", unready.join(" "))
    }

    fn done(&self, text: &str) {
        self.send(Report::Step {
            text: text.into(),
            seconds: format!("{:.1}", self.began.elapsed().as_secs_f64()),
        });
    }

    fn send(&self, report: Report) {
        // The host that doesn't listen any more has ended the bubble.
        let _ = self.reports.send(report);
    }
}

/// The subnet in flanneld's file, once it is flanneld's own: the offer has no network.
fn lease() -> Result<String> {
    let text = files::read(Path::new(SUBNET_FILE))?;
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(str::to_owned)
    };
    match (value("FLANNEL_NETWORK"), value("FLANNEL_SUBNET")) {
        (Some(_), Some(subnet)) => Ok(subnet),
        _ => bail!("flanneld has no lease yet"),
    }
}
