//! The parts of this program that run on a testbed's host: what must be timed without the
//! way there. Each prints one JSON document.
//!
//! Layout: `stopwatch` – times a command; `attach` – runs CNI plugins as the kubelet does, by
//! `cni-hpk/client`, and times them; `pods` – creates pods and times them.

mod attach;
mod pods;
mod stopwatch;

use std::future::Future;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How long things took, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Times {
    pub runs: Vec<f64>,
    /// From the first start to the last end.
    pub all: f64,
}

#[derive(Debug, Subcommand)]
pub enum Part {
    /// Times a command that is run again and again
    Stopwatch(stopwatch::Options),
    /// Runs a network's plugins
    #[command(subcommand)]
    Attach(attach::Action),
    /// Starts or removes pods
    #[command(subcommand)]
    Pods(pods::Action),
}

pub fn run(part: &Part) -> Result<()> {
    let answer = match part {
        Part::Stopwatch(options) => to_json(&stopwatch::run(options)?)?,
        Part::Attach(action) => block_on(attach::run(action))?,
        Part::Pods(action) => to_json(&block_on(pods::run(action))?)?,
    };
    println!("{answer}");
    Ok(())
}

fn to_json(times: &Times) -> Result<Value> {
    serde_json::to_value(times).context("writing the times as JSON")
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime")?
        .block_on(work)
}
