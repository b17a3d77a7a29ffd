//! Runs a network's plugins as the kubelet does, by `cni-hpk/client`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use hpk_cni_client::types::AddResult;
use hpk_cni_client::{Attachment, Client, NetworkList};
use serde_json::{Value, json};
use tokio::task::JoinSet;

#[derive(Debug, Subcommand)]
pub enum Action {
    /// One ADD: `{"addresses": […]}`
    Add(One),
    /// One DEL: `{}`
    Del(One),
    /// Times ADD and DEL: `{"add": [seconds], "del": [seconds]}`
    Times(Times),
}

#[derive(Debug, Args)]
pub struct Network {
    /// Conflist
    #[arg(long)]
    conf: PathBuf,
    /// Folders of plugins, separated by colons
    #[arg(long, value_delimiter = ':')]
    plugins: Vec<PathBuf>,
    /// Folder of the result cache
    #[arg(long)]
    cache: PathBuf,
}

#[derive(Debug, Args)]
pub struct One {
    #[command(flatten)]
    network: Network,
    #[arg(long)]
    id: String,
    #[arg(long)]
    netns: PathBuf,
}

#[derive(Debug, Args)]
pub struct Times {
    #[command(flatten)]
    network: Network,
    /// How many attachments in all
    #[arg(long)]
    count: usize,
    /// How many at once: this many are begun together, and the next when all of them have ended
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    parallel: u16,
    /// Their network namespaces: this with their number, from 0
    #[arg(long)]
    netns: String,
}

impl Network {
    fn open(&self) -> Result<(Client, NetworkList)> {
        let list = NetworkList::load_file(&self.conf)?;
        Ok((Client::new(self.plugins.clone(), self.cache.clone()), list))
    }
}

fn attachment(id: String, netns: PathBuf) -> Attachment {
    Attachment {
        container_id: id,
        netns,
        ifname: "eth0".into(),
        ..Attachment::default()
    }
}

pub async fn run(action: &Action) -> Result<Value> {
    match action {
        Action::Add(one) => {
            let (client, list) = one.network.open()?;
            let result = client
                .add(&list, &attachment(one.id.clone(), one.netns.clone()))
                .await?;
            Ok(json!({"addresses": addresses(&result)}))
        }
        Action::Del(one) => {
            let (client, list) = one.network.open()?;
            client
                .del(&list, &attachment(one.id.clone(), one.netns.clone()))
                .await?;
            Ok(json!({}))
        }
        Action::Times(times) => times.take().await,
    }
}

fn addresses(result: &AddResult) -> Vec<String> {
    let addresses = result.ips.iter().map(|ip| ip.address.addr().to_string());
    addresses.collect()
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Add,
    Del,
}

impl Times {
    async fn take(&self) -> Result<Value> {
        let (client, list) = self.network.open()?;
        let mut times = (Vec::new(), Vec::new());
        let numbers: Vec<_> = (0..self.count).collect();
        for batch in numbers.chunks(self.parallel.into()) {
            times
                .0
                .extend(self.batch(&client, &list, batch, Operation::Add).await?);
            times
                .1
                .extend(self.batch(&client, &list, batch, Operation::Del).await?);
        }
        Ok(json!({"add": times.0, "del": times.1}))
    }

    /// Seconds from the batch's beginning to each operation's end. All are run to their end
    /// before the first failure is told.
    async fn batch(
        &self,
        client: &Client,
        list: &NetworkList,
        numbers: &[usize],
        operation: Operation,
    ) -> Result<Vec<f64>> {
        let mut running = JoinSet::new();
        let start = Instant::now();
        for number in numbers {
            let (client, list) = (client.clone(), list.clone());
            let netns = format!("{}{number}", self.netns);
            let one = attachment(format!("bench-{number}"), netns.clone().into());
            running.spawn(async move {
                let result = match operation {
                    Operation::Add => client.add(&list, &one).await.map(drop),
                    Operation::Del => client.del(&list, &one).await,
                };
                let taken = start.elapsed().as_secs_f64();
                result.with_context(|| format!("{operation:?} of {netns}"))?;
                anyhow::Ok(taken)
            });
        }
        let (mut times, mut failures) = (Vec::new(), Vec::new());
        while let Some(ended) = running.join_next().await {
            match ended.context("a task panicked")? {
                Ok(taken) => times.push(taken),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        if !failures.is_empty() {
            bail!("{} failed: {}", failures.len(), failures.join("; "));
        }
        Ok(times)
    }
}
