//! `hpktainer`: one container on the pod network, without Kubernetes.
//!
//! Works inside a bubble, with that bubble's network: `hpktainer run --rm -it docker://busybox sh`; on a host where a
//! bubble of the user's runs, with the same network; and on any other host, with that of a local bubble that it makes.
//!
//! Exit code: of `run` and `exec` the program's own (128 + N after signal N); 127 where there is no such program, 126
//! where it can't be executed, 125 where hpktainer itself failed, as with Docker; 2 for a wrong command line.
//!
//! Layout, a file per subcommand and what they share:
//! - [`run`], [`exec`], [`ps`], [`logs`], [`inspect`], [`stop`], [`kill`], [`wait`], [`rm`], [`pull`], [`images`], [`rmi`]
//! - [`config`]: the places, from the environment
//! - [`container`]: what is remembered of a container, and finding it
//! - [`spec`]: the OCI runtime spec (pure)
//! - [`settings`]: environment files, `--bind`, `--net`, HPK_SQUASH_IDS
//! - [`network`]: namespace and CNI; [`publish`]: ports
//! - [`limits`]: memory and processors
//! - [`words`]: what follows the options
//! - [`task`]: the shim, from start to delete
//! - [`image`]: the image, however it is named; [`claim`]: holding it
//! - [`sweep`]: what killed ones left; [`locks`]
//! - [`detach`]: hpktainer in the background
//! - [`root`]: a running container's root file system
//! - [`stdio`]: terminal, pipes, signals between the caller and the container
//! - [`host`]: outside any bubble
//! - [`bars`]: progress on a terminal; [`format`](mod@format): how lists are printed

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bars;
mod claim;
mod config;
mod container;
mod detach;
mod exec;
mod format;
mod host;
mod image;
mod images;
mod inspect;
mod kill;
mod limits;
mod locks;
mod logs;
mod network;
mod ps;
mod publish;
mod pull;
mod rm;
mod rmi;
mod root;
mod run;
mod settings;
mod spec;
mod stdio;
mod stop;
mod sweep;
mod task;
mod wait;
mod words;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use settings::Net;

/// One container on the pod network of a bubble, or of a local one.
#[derive(Debug, Parser)]
#[command(name = "hpktainer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a container
    Run(Box<run::Args>),
    /// Run a further program in a running container
    Exec(exec::Args),
    /// List containers
    Ps(ps::Args),
    /// Print the output of a detached container
    Logs(logs::Args),
    /// Tell all that is known of containers and images, as JSON
    Inspect(inspect::Args),
    /// Stop containers
    Stop(stop::Args),
    /// Send a signal to containers
    Kill(kill::Args),
    /// Wait for the end of containers and print their exit codes
    Wait(wait::Args),
    /// Remove containers
    Rm(rm::Args),
    /// Pull an image into the store
    Pull(pull::Args),
    /// List the images of the store
    Images(images::Args),
    /// Remove images from the store
    Rmi(rmi::Args),
    /// Hold a local bubble
    #[command(hide = true)]
    KeepBubble(host::keeper::Args),
}

/// hpktainer itself failed, not the program.
const OWN_FAILURE: u8 = 125;

/// The command line, for its manual and the shells' completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(code) = elsewhere(&cli.command) {
        return code;
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("HPK_LOG")
                .unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(dispatch(cli.command));
            // A blocked read of a terminal must not hold up the exit.
            runtime.shutdown_background();
            done
        }
        Err(e) => Err(anyhow::Error::new(e).context("starting the runtime")),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("hpktainer: {error:#}");
            let code = error.downcast_ref::<task::CannotRun>().map(|it| it.code);
            ExitCode::from(code.unwrap_or(OWN_FAILURE))
        }
    }
}

/// What has to be done by another process than this one: in the background, or with what a host lacks. Before the first
/// thread.
fn elsewhere(command: &Command) -> Option<ExitCode> {
    let background = detach::is_background();
    let done = match command {
        Command::Run(args) if args.detach && !background => detach::start_in_background(),
        Command::KeepBubble(args) => host::keeper::run(&args.folder).map(|()| 0),
        _ if !host::is_host() => return None,
        Command::Run(args) => host::start_again(need(command)?, background, &args.publish),
        _ => host::start_again(need(command)?, false, &[]),
    };
    Some(match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("hpktainer: {error:#}");
            ExitCode::from(OWN_FAILURE)
        }
    })
}

/// What it takes on a host; nothing for what knows the store of images alone.
fn need(command: &Command) -> Option<host::Need> {
    match command {
        Command::Run(args) => Some(match args.net {
            Net::Pod => host::Need::Network,
            Net::None | Net::Host => host::Need::OwnNamespaces,
        }),
        // They clean up behind what was killed.
        Command::Rm(_) | Command::Stop(_) => Some(host::Need::Namespaces),
        Command::Pull(_) | Command::Images(_) | Command::Rmi(_) | Command::KeepBubble(_) => None,
        Command::Exec(_)
        | Command::Ps(_)
        | Command::Logs(_)
        | Command::Inspect(_)
        | Command::Kill(_)
        | Command::Wait(_) => Some(host::Need::Places),
    }
}

async fn dispatch(command: Command) -> anyhow::Result<u8> {
    let config = config::Config::from_env();
    match command {
        Command::Run(args) => run::main(&config, *args).await,
        Command::Exec(args) => exec::main(&config, args).await,
        Command::Ps(args) => ps::main(&config, args).await,
        Command::Logs(args) => logs::main(&config, args).await,
        Command::Inspect(args) => inspect::main(&config, args).await,
        Command::Stop(args) => stop::main(&config, args).await,
        Command::Kill(args) => kill::main(&config, args).await,
        Command::Wait(args) => wait::main(&config, args).await,
        Command::Rm(args) => rm::main(&config, args).await,
        Command::Pull(args) => pull::main(args).await,
        Command::Images(args) => images::main(args).await,
        Command::Rmi(args) => rmi::main(args).await,
        Command::KeepBubble(_) => Ok(OWN_FAILURE), // `elsewhere` has done it
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cleans_up_on_a_host_may_unmount() {
        let need = |line: &[&str]| need(&Cli::try_parse_from(line).unwrap().command);
        for line in [["hpktainer", "rm", "a"], ["hpktainer", "stop", "a"]] {
            assert_eq!(need(&line), Some(host::Need::Namespaces), "{line:?}");
        }
        assert_eq!(need(&["hpktainer", "ps"]), Some(host::Need::Places));
        assert_eq!(need(&["hpktainer", "images"]), None);
    }
}
