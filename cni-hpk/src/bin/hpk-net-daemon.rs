//! `hpk-net-daemon`: the network's long-lived part. `overlay` joins a bubble
//! to the others: see [`cni_hpk::overlay`].

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cni_hpk::overlay;
use tracing::error;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Parser)]
#[command(name = "hpk-net-daemon", version, about = "The network of a bubble")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Joins this bubble to the overlay and keeps it there
    Overlay(overlay::config::Config),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let Command::Overlay(config) = Cli::parse().command;
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = overlay::error::chain(&error), "overlay ended");
            ExitCode::FAILURE
        }
    }
}

fn run(config: overlay::config::Config) -> Result<(), overlay::error::Error> {
    let prepared = overlay::prepare(&config)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(overlay::error::Error::Thread)?
        .block_on(overlay::run(config, prepared))
}
