//! hpk-bubble: from a Slurm allocation to a Kubernetes cluster of bubbles, and back to nothing.
//!
//! Layout:
//! - `settings`: what the environment sets, and the values that stand otherwise
//! - `allocation`, `clock`: what Slurm granted, and for how long
//! - `address`, `routes`: how the host is reached, and which networks are its own
//! - `gpus`: which GPUs pods may have
//! - `doctor`: what the host has and lacks
//! - `image`: the image that the bubbles start from
//! - `cluster`, `pki`, `kubeconfig`: a cluster's files in `~/.hpk`
//! - `launch`: the batch host's part: prepare, srun, finish; `stop`: when it is asked to
//! - `ports`, `forward`: the host's TCP ports, held, and led into the controller's bubble
//! - `host`: a host's part: instance, uplink, watching over both, clean-up
//! - `bubble`: the part inside a bubble: the node's daemons, in order, supervised
//! - `link`: what the host's and the bubble's part say to each other
//! - `local`, `sweep`: node-local folders, and what earlier clusters left
//! - `userns`: removing what the bubble's users own; probing the kernel
//! - `attempts`, `files`, `logs`, `procfs`: what the others share

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod allocation;
mod apptainer;
mod attempts;
mod bubble;
mod cgroups;
mod clock;
mod cluster;
mod doctor;
mod files;
mod forward;
mod gpus;
mod host;
mod image;
mod kubeconfig;
mod launch;
mod link;
mod local;
mod logs;
mod pki;
mod ports;
mod procfs;
mod routes;
mod settings;
mod stop;
mod sweep;
mod userns;

use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

/// A Slurm job as a Kubernetes cluster, a bubble on each host.
#[derive(Debug, Parser)]
#[command(
    name = "hpk-bubble",
    version,
    about,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// The cluster that `launch` or `prepare` made: the job's id, or $HPK_CLUSTER.
    #[arg(value_name = "ID", required = true)]
    id: Option<String>,
    /// What to be on this host.
    #[arg(value_name = "ROLE", required = true)]
    role: Option<Role>,
}

/// What a host is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// The controller on the job's first task, a node on the others.
    Auto,
    Controller,
    Node,
    /// Only remove what a bubble of this cluster left on this host.
    Clean,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// In a batch job: prepare the cluster, start a bubble on each host, end with the job.
    Launch,
    /// Write a cluster's certificates, ports and kubeconfig, and start nothing.
    Prepare {
        /// The cluster's name, part of its folder's and its context's.
        id: String,
    },
    /// Say what this host has and lacks, and what to ask the administrator for.
    Doctor,
    /// In a bubble: run the node's daemons (the image's start script calls this).
    #[command(hide = true)]
    Supervise,
    /// Lead the connections of the socket on standard input to a port in a bubble.
    #[command(hide = true)]
    Forward {
        /// The bubble's init.
        pid: i32,
        port: u16,
    },
    /// What must run in a user namespace of its own.
    #[command(hide = true)]
    InUserns {
        /// It is in one already.
        #[arg(long)]
        entered: bool,
        #[command(subcommand)]
        task: userns::Task,
    },
}

/// The command line, for its manual and the shells' completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match (cli.command, cli.id, cli.role) {
        (Some(Command::Launch), ..) => block_on(launch::launch()),
        (Some(Command::Prepare { id }), ..) => block_on(launch::prepare_only(&id)),
        (Some(Command::Doctor), ..) => block_on(doctor::doctor()),
        (Some(Command::Supervise), ..) => block_on(bubble::supervise()),
        (Some(Command::Forward { pid, port }), ..) => forward::run(pid, port),
        (Some(Command::InUserns { entered, task }), ..) => userns::run(&task, entered),
        (None, Some(id), Some(Role::Clean)) => host::clean(&id),
        (None, Some(id), Some(role)) => block_on(host::run(&id, role)),
        (None, ..) => Ok(ExitCode::from(2)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("hpk: {error:#}");
        ExitCode::FAILURE
    })
}

/// One thread only: a child's parent-death signal comes when the *thread* that made it ends.
fn block_on(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    // Fails only when a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(work)
}

/// This program's own file; where another has taken its place since it was started, that one.
fn own_path() -> Result<PathBuf> {
    let path = std::env::current_exe().context("finding this program's own file")?;
    Ok(in_place(path))
}

/// The kernel ends the name of a file that was replaced with a mark (proc_pid_exe(5)).
fn in_place(path: PathBuf) -> PathBuf {
    let replaced = path.as_os_str().as_bytes().strip_suffix(b" (deleted)");
    match replaced {
        Some(place) if !path.exists() => OsStr::from_bytes(place).into(),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_is_found_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("hpk-bubble");
        let marked = folder.path().join("hpk-bubble (deleted)");
        assert_eq!(in_place(place.clone()), place);
        assert_eq!(in_place(marked.clone()), place);
        std::fs::write(&marked, "").unwrap();
        assert_eq!(in_place(marked.clone()), marked);
    }
}
