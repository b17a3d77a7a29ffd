//! `hpk-kubelet`: the node agent of a bubble. It takes pods from the API server and runs them
//! through two protocols alone: CNI plugins, and a runtime v2 shim.
//!
//! - `config`: the command line
//! - `node`: the node's object, lease and conditions
//! - `pod`: pods, a worker each; `manifests`: static pods
//! - `spec`, `env`, `volumes`, `images`, `qos`, `quantity`: from a pod's spec to what a shim is given
//! - `eviction`: pods that the node can't keep
//! - `shutdown`: the end of all pods before the node's
//! - `network`, `exec`, `hooks`, `probes`, `mounts`: acting on the node
//! - `status`, `events`, `api`: talking with the API server
//! - `server`: the HTTPS API on port 10250 (logs, exec); `access`: what it is told of the pods
//! - `agent`: what all of these share; `start`: putting it together

#![deny(unsafe_code)]

mod access;
mod agent;
mod api;
mod config;
mod env;
mod events;
mod eviction;
mod exec;
mod hooks;
mod ids;
mod images;
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

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match start::run(config::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hpk-kubelet: {error:#}");
            ExitCode::FAILURE
        }
    }
}
