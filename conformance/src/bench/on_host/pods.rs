//! Creates pods on a node and times them from the request to the watch's first word of them
//! running; removes them again.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use futures::StreamExt as _;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, ObjectList, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

use super::Times;

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Creates all at once; ends when all are running
    Start(Pods),
    /// Deletes them; ends when the API server has none left
    Remove(Pods),
}

#[derive(Debug, Args)]
pub struct Pods {
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Its context
    #[arg(long)]
    context: String,
    #[arg(long)]
    namespace: String,
    /// The node that they are bound to: no scheduler takes part
    #[arg(long)]
    node: String,
    #[arg(long)]
    image: String,
    /// How many
    #[arg(long)]
    count: usize,
    /// Seconds until it gives up
    #[arg(long, default_value_t = 180)]
    limit: u64,
}

/// The time of each pod from its request, and of all from the first request.
pub async fn run(action: &Action) -> Result<Times> {
    let (Action::Start(pods) | Action::Remove(pods)) = action;
    let work = async {
        let api = pods.api().await?;
        match action {
            Action::Start(_) => pods.start(&api).await,
            Action::Remove(_) => pods.remove(&api).await,
        }
    };
    tokio::time::timeout(Duration::from_secs(pods.limit), work)
        .await
        .with_context(|| {
            format!(
                "the {} pods on {} took over {} s",
                pods.count, pods.node, pods.limit
            )
        })?
}

impl Pods {
    async fn api(&self) -> Result<Api<Pod>> {
        // An error: one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let file = Kubeconfig::read_from(&self.kubeconfig)?;
        let options = KubeConfigOptions {
            context: Some(self.context.clone()),
            ..KubeConfigOptions::default()
        };
        let config = Config::from_custom_kubeconfig(file, &options).await?;
        Ok(Api::namespaced(Client::try_from(config)?, &self.namespace))
    }

    fn name(&self, number: usize) -> String {
        format!("{}-{number}", self.node)
    }

    fn pod(&self, number: usize) -> Result<Pod> {
        serde_json::from_value(json!({
            "metadata": {"name": self.name(number)},
            "spec": {
                "nodeName": self.node, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": self.image,
                                "imagePullPolicy": "IfNotPresent",
                                "command": ["sleep", "86400"]}],
            }
        }))
        .context("the pod's manifest")
    }

    async fn start(&self, api: &Api<Pod>) -> Result<Times> {
        let running = |pod: Option<&Pod>| {
            let status = pod.and_then(|pod| pod.status.as_ref());
            match status.and_then(|status| status.phase.as_deref()) {
                Some("Running") => Ok(true),
                Some("Failed") => bail!("a pod failed: {status:?}"),
                _ => Ok(false),
            }
        };
        let create = |number| async move {
            api.create(&PostParams::default(), &self.pod(number)?)
                .await?;
            anyhow::Ok(())
        };
        self.time(api, create, running).await
    }

    async fn remove(&self, api: &Api<Pod>) -> Result<Times> {
        let gone = |pod: Option<&Pod>| Ok(pod.is_none());
        let delete = |number| async move {
            let name = self.name(number);
            api.delete(&name, &DeleteParams::default()).await?;
            anyhow::Ok(())
        };
        self.time(api, delete, gone).await
    }

    /// Makes all requests at once, and watches until `is_there` has been true of each pod (of None
    /// when the pod isn't there at all).
    async fn time<F: Future<Output = Result<()>>>(
        &self,
        api: &Api<Pod>,
        request: impl Fn(usize) -> F,
        is_there: impl Fn(Option<&Pod>) -> Result<bool>,
    ) -> Result<Times> {
        let before = api.list(&ListParams::default()).await?;
        let request = &request;
        let requests = try_join_all((0..self.count).map(|number| async move {
            let asked = Instant::now();
            request(number).await?;
            anyhow::Ok((self.name(number), asked))
        }));
        let watch = self.follow(api, before, is_there);
        let (asked, there) = futures::try_join!(requests, watch)?;
        let runs = asked.iter().map(|(name, asked)| {
            let there = there
                .get(name)
                .with_context(|| format!("no word of {name}"))?;
            Ok(there.duration_since(*asked).as_secs_f64())
        });
        let first = asked.iter().map(|(_, asked)| asked).min();
        let last = there.values().max();
        let (first, last) = first.zip(last).context("no pods")?;
        Ok(Times {
            runs: runs.collect::<Result<_>>()?,
            all: last.duration_since(*first).as_secs_f64(),
        })
    }

    /// When `is_there` became true of each. The API server ends a watch that it can't keep up
    /// with: then all are listed anew.
    async fn follow(
        &self,
        api: &Api<Pod>,
        mut list: ObjectList<Pod>,
        is_there: impl Fn(Option<&Pod>) -> Result<bool>,
    ) -> Result<HashMap<String, Instant>> {
        let mut there = HashMap::new();
        loop {
            for name in (0..self.count).map(|number| self.name(number)) {
                let pod = list
                    .items
                    .iter()
                    .find(|pod| pod.metadata.name.as_ref() == Some(&name));
                if is_there(pod)? {
                    there.entry(name).or_insert_with(Instant::now);
                }
            }
            let version = list.metadata.resource_version.unwrap_or_default();
            let mut events = api.watch(&WatchParams::default(), &version).await?.boxed();
            while there.len() < self.count {
                let (pod, is_gone) = match events.next().await {
                    Some(Ok(WatchEvent::Added(pod) | WatchEvent::Modified(pod))) => (pod, false),
                    Some(Ok(WatchEvent::Deleted(pod))) => (pod, true),
                    Some(Ok(WatchEvent::Bookmark(_))) => continue,
                    Some(Ok(WatchEvent::Error(_)) | Err(_)) | None => break,
                };
                if is_there((!is_gone).then_some(&pod))? {
                    let name = pod.metadata.name.unwrap_or_default();
                    there.entry(name).or_insert_with(Instant::now);
                }
            }
            if there.len() == self.count {
                return Ok(there);
            }
            list = api.list(&ListParams::default()).await?;
        }
    }
}
