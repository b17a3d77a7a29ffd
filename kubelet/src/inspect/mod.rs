//! The node's pods and containers, looked at from within its bubble, as one would with crictl: without the API server and
//! without the kubelet, from what that has written down and from the shims.
//!
//! - `records`: what is written down, and what is meant by a name or id
//! - `list`: `pods` and `ps`; `tell`: `inspect`
//! - `logs`; `exec`, which is left to kubectl

mod list;
mod logs;
mod records;
mod tell;

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use records::Records;

/// What to look at.
#[derive(Debug, Subcommand)]
pub enum Look {
    /// List the node's pods
    Pods(List),
    /// List the node's containers
    Ps(List),
    /// Tell all that is known of pods and containers, as JSON
    Inspect {
        /// Names or ids
        #[arg(required = true, value_name = "CONTAINER|POD")]
        wanted: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Print a container's output
    Logs(logs::Options),
    /// Run a command in a container, by kubectl
    Exec {
        /// Pass stdin on
        #[arg(short = 'i', long)]
        stdin: bool,
        /// Give it a terminal
        #[arg(short, long)]
        tty: bool,
        #[command(flatten)]
        container: Container,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

/// Where the records are.
#[derive(Debug, Args)]
pub struct Place {
    /// The kubelet's --run-dir
    #[arg(long, default_value = "/run/hpk", hide = true)]
    run_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct List {
    /// Those that have ended, too
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// json: an object for each on a line of its own
    #[arg(short, long, value_parser = ["json"], conflicts_with = "quiet")]
    output: Option<String>,
    /// Only of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only of pods whose name or id begins so
    #[arg(short, long)]
    pod: Option<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub struct Container {
    /// The container: beginning of its id, its name, or [NAMESPACE/]POD/NAME
    container: String,
    #[command(flatten)]
    place: Place,
}

impl Container {
    fn find(&self) -> Result<records::Found> {
        Records::read(&self.place.run_dir)?.container(&self.container)
    }
}

/// Answers.
pub fn run(look: Look) -> Result<()> {
    match look {
        Look::Exec {
            stdin,
            tty,
            container,
            command,
        } => exec(&container.find()?, (stdin, tty), &command),
        look => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?
            .block_on(answer(look)),
    }
}

async fn answer(look: Look) -> Result<()> {
    match look {
        Look::Pods(list) => list::pods(&list).await,
        Look::Ps(list) => list::containers(&list).await,
        Look::Inspect { wanted, place } => tell::tell(&place, &wanted).await,
        Look::Logs(options) => logs::print(options).await,
        Look::Exec { .. } => Ok(()), // `run` has done it
    }
}

/// Terminal, signals and exit code are kubectl's business, which becomes of this process.
fn exec(found: &records::Found, (stdin, tty): (bool, bool), command: &[String]) -> Result<()> {
    let mut kubectl = Command::new("kubectl");
    kubectl.args(["exec", "--namespace", &found.pod.namespace, &found.pod.name]);
    kubectl.args(["--container", &found.name, "--quiet"]);
    kubectl.args(stdin.then_some("--stdin"));
    kubectl.args(tty.then_some("--tty"));
    kubectl.arg("--").args(command);
    Err(kubectl.exec()).context("start kubectl")
}
