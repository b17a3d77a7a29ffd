//! `hpk-net-daemon`: the network's long-lived part. `overlay` joins a bubble
//! to the others: see [`crate::overlay`]; `relay` joins pods by TAPs: see
//! [`crate::relay`].

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use tracing::error;
use tracing_subscriber::EnvFilter;

use crate::{overlay, relay};

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
    /// Joins pods to the bridge by TAPs
    #[command(subcommand)]
    Relay(relay::config::Config),
}

/// The command line, for its manual and the shells' completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The program.
pub fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let (what, ended) = match Cli::parse().command {
        Command::Overlay(config) => (
            "overlay",
            run(config).map_err(|e| overlay::error::chain(&e)),
        ),
        Command::Relay(config) => (
            "relay",
            relay::run(config).map_err(|e| overlay::error::chain(&e)),
        ),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error, "{what} ended");
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
