//! Putting the agent together and running it until it is told to end. Pods outlive it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use hpk_images::container_defaults::parse_bounding;
use hpk_images::manifest::machine_architecture;
use hpk_shim_client::{Bootstrap, serve_events};
use hpk_userns::Mapped;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tower::limit::ConcurrencyLimitLayer;
use tower::timeout::TimeoutLayer;
use tracing::{info, trace, warn};

use crate::agent::Agent;
use crate::api::Reader;
use crate::config::{Args, Config, KUBELET_VERSION};
use crate::devices::Devices;
use crate::env::Facts;
use crate::events::{Kind, Recorder};
use crate::eviction;
use crate::images::{Images, collect};
use crate::network::Network;
use crate::node::{heartbeat, object, observe, register};
use crate::pod::turns::Turns;
use crate::pod::{paths, sandbox, set};
use crate::probes::tally::Tally;
use crate::server::{PodAccess, Server, ServerConfig};
use crate::shutdown;
use crate::spec::files::Resolver;
use crate::spec::{Host, seccomp};
use crate::text;

/// containerd namespace given to shims: that of the stock kubelet's containers.
const SHIM_NAMESPACE: &str = "k8s.io";

/// How long a request for the node may take: half of what its lease lasts.
const NODE_REQUEST_LIMIT: Duration = Duration::from_secs(20);

/// Requests to the API server for pods that are under way at a time.
const REQUESTS: usize = 16;
/// How long each may take, with all repetitions: one without an answer must not keep its place from others for ever.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// Runs the kubelet.
pub fn run(args: Args) -> Result<()> {
    let config = Config::new(args)?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(serve(config));
    // Work in flight is found again from its record: nothing is waited for.
    runtime.shutdown_background();
    outcome
}

async fn serve(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let agent = Arc::new(assemble(config).await?);
    hear_events(&agent)?;
    sandbox::ensure_pause_rootfs(&agent).context("prepare the sandboxes' root")?;
    serve_http(&agent).await?;
    let work = async {
        let node = register::register(&agent).await;
        agent.recorder.node(
            &node,
            Kind::Normal,
            "Starting",
            "Starting kubelet.".to_owned(),
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(heartbeat::run(Arc::clone(&agent), node.clone()));
        tasks.spawn(collect::beat(Arc::clone(&agent)));
        tasks.spawn(collect::run(Arc::clone(&agent), node.clone()));
        tasks.spawn(eviction::run(Arc::clone(&agent), node.clone()));
        let runs = paths::runs(&agent.config);
        let pods = async {
            if let Err(error) = agent.services.wait_until_ready().await {
                warn!(%error, "services aren't known");
            }
            set::run(Arc::clone(&agent), node)
                .await
                .with_context(|| format!("read {}", runs.display()))
        };
        tokio::select! {
            done = pods => done,
            Some(ended) = tasks.join_next() => never_ends(ended),
        }
    };
    tokio::select! {
        done = work => done?,
        () = shutdown::on_order(&agent) => info!("the node ends: its pods have ended"),
        _ = terminate.recv() => info!("told to end; pods go on"),
        _ = interrupt.recv() => info!("told to end; pods go on"),
    }
    Ok(())
}

/// A node without one of its tasks would seem well and not be: the kubelet ends, and is started again.
fn never_ends(ended: Result<(), JoinError>) -> Result<()> {
    ended.context("a task that runs for ever failed")?;
    bail!("a task that runs for ever ended")
}

async fn assemble(config: Config) -> Result<Agent> {
    let args = config.args.clone();
    info!(version = KUBELET_VERSION, node = args.node_name, "starts");
    for dir in [&args.root_dir, &paths::runs(&config)] {
        paths::private_dir(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let api = client_config(&args).await?;
    let made = node_client(api.clone()).and_then(|node| Ok((node, pods_client(api)?)));
    let (client, pods_client) = made.context("make clients of the API server")?;
    let images = Images::open(&args).await.context("open the image store")?;
    let events = args.run_dir.join("shim-events.sock");
    let bootstrap = Bootstrap::new(&args.runtime, SHIM_NAMESPACE, &events);
    let resolv_conf = fs::read_to_string(&args.resolv_conf)
        .with_context(|| format!("read {}", args.resolv_conf.display()))?;
    let resolver = Resolver {
        cluster_dns: args.cluster_dns.clone(),
        cluster_domain: args.cluster_domain.clone(),
        host: resolv_conf,
    };
    let mut agent = Agent {
        reader: Reader::new(pods_client.clone()),
        recorder: Recorder::start(client.clone(), &args.node_name),
        network: Network::new(&args),
        turns: Turns::new(std::thread::available_parallelism().map_or(1, usize::from)),
        devices: Devices::new(config.devices.clone()),
        services: watch_services(client.clone()),
        host: host(&config)?,
        facts: Facts {
            node_name: args.node_name.clone(),
            host_ips: args.node_ip.iter().map(ToString::to_string).collect(),
            ..Facts::default()
        },
        registry: crate::access::Registry::default(),
        hosts_file: fs::read_to_string("/etc/hosts").context("read /etc/hosts")?,
        standing: watch::Sender::default(),
        probes: Tally::default(),
        seccomp: profile(&args.seccomp_default_profile).map_err(|error| format!("{error:#}")),
        started_at: Timestamp::now(),
        cgroups: hpk_cgroup::hierarchies::probe().context("look for cgroups")?,
        config,
        client,
        pods_client,
        images,
        bootstrap,
        resolver,
    };
    agent.facts.allocatable = object::allocatable(&agent.config, &observe::observe(&agent));
    Ok(agent)
}

/// For the node itself: its lease, its events, watches. An answer begins in time or is asked for again: a lease that
/// waited for a connection that is dead would be lost with the node.
fn node_client(config: kube::Config) -> Result<Client, kube::Error> {
    let builder =
        ClientBuilder::try_from(config)?.with_layer(&TimeoutLayer::new(NODE_REQUEST_LIMIT));
    Ok(builder.build())
}

/// For pods: so many requests at a time, each of them until its answer begins, or too long. (Unlimited, each pod of a
/// hundred has a connection of its own, which stays open for a minute and a half and costs both sides memory.)
fn pods_client(config: kube::Config) -> Result<Client, kube::Error> {
    let builder = ClientBuilder::try_from(config)?
        .with_layer(&TimeoutLayer::new(REQUEST_LIMIT))
        .with_layer(&ConcurrencyLimitLayer::new(REQUESTS));
    Ok(builder.build())
}

async fn client_config(args: &Args) -> Result<kube::Config> {
    let path = args.kubeconfig.display();
    let file = Kubeconfig::read_from(&args.kubeconfig).with_context(|| format!("read {path}"))?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("use {path}"))?;
    // Watches are silent for minutes; their own timeouts end them.
    config.read_timeout = None;
    Ok(config)
}

fn watch_services(client: Client) -> Store<Service> {
    let (store, writer) = reflector::store();
    let api: Api<Service> = Api::all(client);
    let stream =
        reflector::reflector(writer, watcher(api, watcher::Config::default())).default_backoff();
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            if let Err(error) = event {
                warn!(
                    error = text::chain(&error),
                    "the watch on services failed; again"
                );
            }
        }
    });
    store
}

/// The HTTPS API, if there are certificates for it; bound before the node says that it is Ready.
async fn serve_http(agent: &Arc<Agent>) -> Result<()> {
    let args = &agent.config.args;
    let (Some(cert), Some(key), Some(ca)) = (
        &args.tls_cert_file,
        &args.tls_private_key_file,
        &args.client_ca_file,
    ) else {
        warn!("no --tls-cert-file: logs and exec can't be served");
        return Ok(());
    };
    let address = args.address.or_else(|| args.node_ip.first().copied());
    let address = address.context("no address to listen on")?;
    let config = ServerConfig {
        listen: SocketAddr::new(address, args.port),
        node_name: args.node_name.clone(),
        cert_file: cert.clone(),
        key_file: key.clone(),
        client_ca_file: ca.clone(),
        run_dir: args.run_dir.clone(),
    };
    let access: Arc<dyn PodAccess> = Arc::clone(agent) as Arc<dyn PodAccess>;
    let server = Server::bind(config, agent.client.clone(), access)
        .await
        .context("serve logs and exec")?;
    tokio::spawn(server.run(std::future::pending()));
    Ok(())
}

/// A shim wants somebody to tell its events to. Nothing rests on them: how a container ended is asked for.
fn hear_events(agent: &Agent) -> Result<()> {
    let mut events = serve_events(&agent.bootstrap.ttrpc_address).context("serve shims' events")?;
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            trace!(?event, "a shim tells");
        }
    });
    Ok(())
}

fn profile(path: &Path) -> Result<seccomp::Profile> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
}

fn host(config: &Config) -> Result<Host> {
    let floor = fs::read_to_string("/proc/self/oom_score_adj").context("read oom_score_adj")?;
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let bounding = parse_bounding(&status).context("find CapBnd in /proc/self/status")?;
    Ok(Host {
        memory: config
            .capacity
            .get("memory")
            .map_or(0, |quantity| quantity.value()),
        oom_score_floor: floor.trim().parse().context("parse oom_score_adj")?,
        bounding,
        ids: Mapped::here().context("look for mapped ids")?,
        machine: seccomp::Machine {
            architecture: machine_architecture(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").context("read osrelease")?,
        },
    })
}
