//! `hpk-kubelet`: the node agent of a bubble. It takes pods from the API server and runs them
//! through two protocols alone: CNI plugins, and a runtime v2 shim.
//!
//! - `config`: the command line
//! - `node`: the node's object, lease and conditions
//! - `pod`: pods, a worker each; `manifests`: static pods
//! - `spec`, `env`, `volumes`, `images`, `qos`, `quantity`: from a pod's spec to what a shim is given
//! - `devices`: devices of the node's, such as GPUs, that pods ask for by number
//! - `eviction`: pods that the node can't keep
//! - `shutdown`: the end of all pods before the node's
//! - `network`, `exec`, `hooks`, `probes`, `mounts`: acting on the node
//! - `status`, `events`, `api`: talking with the API server
//! - `server`: the HTTPS API on port 10250 (logs, exec); `access`: what it is told of the pods
//! - `inspect`: the node's pods, told to whoever is in its bubble
//! - `agent`: what all of these share; `start`: putting it together

#![deny(unsafe_code)]

mod access;
mod agent;
mod api;
mod config;
mod devices;
mod env;
mod events;
mod eviction;
mod exec;
mod hooks;
mod ids;
mod images;
mod inspect;
mod manifests;
mod mounts;
mod network;
mod node;
mod pod;
mod probes;
mod qos;
mod quantity;
mod server;
mod shutdown;
mod spec;
mod start;
mod status;
mod text;
mod usage;
mod volumes;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Subcommand as _};
use tracing_subscriber::EnvFilter;

/// The command line, for its manual and the shells' completions.
pub fn command() -> clap::Command {
    let node = config::Args::command();
    let about = node.get_about().cloned().unwrap_or_default();
    inspect::Look::augment_subcommands(node)
        .about(about)
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .subcommand_required(false)
        .arg_required_else_help(false)
        .after_help(
            "Without a command it is the node's kubelet; with one it tells of the node's pods, in a bubble's shell.",
        )
}

/// The program.
pub fn main() -> ExitCode {
    let matches = command().get_matches();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let done = match matches.subcommand() {
        Some(_) => parsed(inspect::Look::from_arg_matches(&matches)).and_then(inspect::run),
        None => parsed(config::Args::from_arg_matches(&matches)).and_then(start::run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hpk-kubelet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What clap has checked before has the form that is wanted.
fn parsed<T>(read: Result<T, clap::Error>) -> anyhow::Result<T> {
    read.map_err(|error| error.exit())
}
