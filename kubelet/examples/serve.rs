//! The kubelet's HTTPS server alone, for containers that others started: a JSON file names each pod
//! and its containers' shim, bundle and log. For trying the server against a real API server and a
//! real shim, without a kubelet.
//!
//! `serve --kubeconfig F --node N --listen IP:PORT --cert F --key F --client-ca F --run-dir D --pods F`

#[path = "../src/server/mod.rs"]
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use clap::Parser;
use k8s_openapi::api::core::v1::Pod;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;
use server::access::{AccessError, ContainerQuery, ContainerRef, PodAccess, PodRef, Run};

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    kubeconfig: PathBuf,
    #[arg(long)]
    node: String,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    cert: PathBuf,
    #[arg(long)]
    key: PathBuf,
    #[arg(long)]
    client_ca: PathBuf,
    #[arg(long)]
    run_dir: PathBuf,
    /// Read anew at each request.
    #[arg(long)]
    pods: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Entry {
    namespace: String,
    pod: String,
    container: String,
    id: String,
    bundle: PathBuf,
    shim: String,
    log: PathBuf,
    #[serde(default)]
    stdin: Option<PathBuf>,
    #[serde(default)]
    stdin_once: bool,
    #[serde(default)]
    tty: bool,
    #[serde(default)]
    netns: Option<PathBuf>,
    running: bool,
}

struct Listed(PathBuf);

impl Listed {
    fn entries(&self) -> Result<Vec<Entry>, AccessError> {
        let text = std::fs::read(&self.0).map_err(|_| AccessError::NotReady)?;
        serde_json::from_slice(&text).map_err(|_| AccessError::NotReady)
    }
}

#[async_trait]
impl PodAccess for Listed {
    async fn pods(&self) -> Vec<Pod> {
        Vec::new()
    }

    async fn container(&self, query: &ContainerQuery) -> Result<ContainerRef, AccessError> {
        let found = self.entries()?.into_iter().find(|entry| {
            entry.namespace == query.namespace
                && entry.pod == query.pod
                && entry.container == query.container
        });
        let Some(entry) = found else {
            return Err(AccessError::NoSuchContainer {
                pod: query.pod.clone(),
                container: query.container.clone(),
            });
        };
        Ok(ContainerRef {
            stdin: entry.stdin.is_some(),
            stdin_once: entry.stdin_once,
            tty: entry.tty,
            current: Some(Run {
                id: entry.id,
                bundle: entry.bundle,
                shim_address: entry.shim,
                log: entry.log,
                stdin: entry.stdin,
                running: entry.running,
            }),
            ..ContainerRef::default()
        })
    }

    async fn pod(
        &self,
        namespace: &str,
        name: &str,
        _: Option<&str>,
    ) -> Result<PodRef, AccessError> {
        let is_it = |entry: &Entry| entry.namespace == namespace && entry.pod == name;
        match self.entries()?.into_iter().find(is_it) {
            Some(entry) => Ok(PodRef {
                uid: String::new(),
                netns: entry.netns,
                ready: entry.running,
            }),
            None => Err(AccessError::NoSuchPod {
                namespace: namespace.to_owned(),
                pod: name.to_owned(),
            }),
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let args = Args::parse();
    let kubeconfig = Kubeconfig::read_from(&args.kubeconfig)?;
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let config_of_server = server::ServerConfig {
        listen: args.listen,
        node_name: args.node,
        cert_file: args.cert,
        key_file: args.key,
        client_ca_file: args.client_ca,
        run_dir: args.run_dir,
    };
    let client = kube::Client::try_from(config)?;
    let access = Arc::new(Listed(args.pods));
    let server = server::Server::bind(config_of_server, client, access).await?;
    server.run(std::future::pending()).await;
    Ok(())
}
