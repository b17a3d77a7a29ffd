//! The parts of this program that run on a testbed's host: what must be timed without the
//! way there. Each prints one JSON document.
//!
//! Layout: `stopwatch` – times a command; `attach` – runs CNI plugins as the kubelet does, by
//! `cni-hpk/client`, and times them.

mod attach;
mod stopwatch;

use anyhow::{Context as _, Result};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Part {
    /// Times a command that is run again and again
    Stopwatch(stopwatch::Options),
    /// Runs a network's plugins
    #[command(subcommand)]
    Attach(attach::Action),
}

pub fn run(part: &Part) -> Result<()> {
    let answer = match part {
        Part::Stopwatch(options) => stopwatch::run(options)?,
        Part::Attach(action) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the asynchronous runtime")?
            .block_on(attach::run(action))?,
    };
    println!("{answer}");
    Ok(())
}
