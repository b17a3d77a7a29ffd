//! `hpktainer exec`

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use hpk_images::process_defaults::{ProcessDefaults, merge_env};
use hpk_images::user;
use hpk_shim_client::ExecRequest;
use oci_spec::runtime::Spec;

use crate::config::Config;
use crate::container::{self, Places};
use crate::root::root_of;
use crate::run::env_entries;
use crate::spec::{Run, fill_in, given_env, process, value};
use crate::stdio::{Pipes, Signals, serve};
use crate::task;
use crate::words::{Named, Words};

/// Arguments of `exec`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "hpktainer exec [OPTIONS] CONTAINER COMMAND...")]
pub struct Args {
    /// Pass stdin on
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// NAME=value, or NAME to pass on the caller's value
    #[arg(short, long, value_name = "NAME[=value]", value_parser = crate::settings::parse_env)]
    env: Vec<String>,
    /// Working directory, by default the container's
    #[arg(short, long)]
    workdir: Option<String>,
    /// USER[:GROUP], by default the container's
    #[arg(short, long)]
    user: Option<String>,
    #[command(flatten)]
    container: Words<Wanted>,
}

/// A container by its name, id, or the beginning of its id.
#[derive(Debug, Clone)]
struct Wanted(String);

impl std::str::FromStr for Wanted {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl Named for Wanted {
    const VALUES: [&'static str; 2] = ["CONTAINER", "COMMAND"];
    const HELP: &'static str =
        "Name, id, or beginning of an id; then the command and its arguments";
    const LEAST: usize = 2;
}

/// Runs a further process in a running container; its exit code is ours.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    let record = container::find(config, &args.container.of.0)?;
    let status = task::status(config, &record).await?;
    if status != task::Status::Running {
        bail!("container {} is not running: {status}", record.name);
    }
    let places = Places::of(config, &record.id);
    let shim = task::reach(&places)
        .await?
        .context("the container's runtime is gone")?;
    let state = shim.state(&record.id, "").await?;
    let process = plan(&args, &places, || root_of(&record.id, state.pid))?;
    let exec_id = format!("exec-{}", std::process::id());
    let mut signals = Signals::take()?;
    let pipes = Pipes::make(&places.run, &exec_id, args.interactive, args.tty)?;
    let done = async {
        let mut copying = pipes.connect()?;
        let request = ExecRequest {
            id: record.id.clone(),
            exec_id: exec_id.clone(),
            process: serde_json::to_value(&process)?,
            stdio: pipes.stdio.clone(),
        };
        shim.exec(request)
            .await
            .map_err(|e| task::in_its_words(e, "adding the process"))?;
        let started = task::start(&shim, &record.id, &exec_id).await;
        let code = match started {
            Ok(_) => {
                serve(
                    &shim,
                    &record.id,
                    &exec_id,
                    args.tty,
                    &mut copying,
                    &mut signals,
                )
                .await
            }
            Err(e) => Err(e),
        };
        // Gone with the container, perhaps.
        let _ = shim.delete(&record.id, &exec_id).await;
        let drained = copying.drain().await;
        code.and_then(|code| drained.map(|()| code))
    }
    .await;
    pipes.remove();
    Ok(u8::try_from(done?).unwrap_or(u8::MAX))
}

/// The container's own process with another command; a user is looked up in the container's `root`, as it is now.
fn plan(
    args: &Args,
    places: &Places,
    root: impl FnOnce() -> anyhow::Result<PathBuf>,
) -> anyhow::Result<oci_spec::runtime::Process> {
    let path = places.bundle().join("config.json");
    let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let spec: Spec =
        serde_json::from_slice(&bytes).with_context(|| format!("parsing {}", path.display()))?;
    let mut process_now = spec
        .process()
        .clone()
        .context("the container has no process")?;
    let mut env = given_env(&spec);
    merge_env(
        &mut env,
        &env_entries(&args.env, |name| std::env::var(name).ok()),
    );
    let cwd = args
        .workdir
        .clone()
        .unwrap_or_else(|| process_now.cwd().to_string_lossy().into_owned());
    if let Some(wanted) = &args.user {
        let (user, bounding) = task::lookups(&root()?, wanted)?;
        return of_user(args, env, cwd, &user, bounding);
    }
    let all = process_now.env().as_deref().unwrap_or_default();
    fill_in(&mut env, value(all, "HOME").unwrap_or("/"), args.tty);
    process_now.set_args(Some(args.container.command.clone()));
    process_now.set_env(Some(env));
    process_now.set_cwd(cwd.into());
    process_now.set_terminal(Some(args.tty));
    Ok(process_now)
}

fn of_user(
    args: &Args,
    env: Vec<String>,
    cwd: String,
    user: &user::User,
    bounding: u64,
) -> anyhow::Result<oci_spec::runtime::Process> {
    let defaults = ProcessDefaults {
        args: args.container.command.clone(),
        env,
        cwd,
        user: String::new(),
        stop_signal: None,
        volumes: Vec::new(),
    };
    process(&Run {
        defaults: &defaults,
        user,
        terminal: args.tty,
        bounding,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn env_of(line: &[&str], filled_in: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let places = Places {
            root: dir.path().join("root"),
            run: dir.path().join("run"),
            netns: dir.path().join("netns"),
        };
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "annotations": { "io.hpk.hpktainer.filled-in": filled_in },
            "process": {
                "cwd": "/", "args": ["sh"], "user": { "uid": 0, "gid": 0 },
                "env": ["A=1", "HOME=/root", "TERM=xterm"],
            },
        });
        container::make_dir(&places.bundle()).unwrap();
        std::fs::write(places.bundle().join("config.json"), spec.to_string()).unwrap();
        container::make_dir(&dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "web:x:0:0::/srv:/bin/sh\n").unwrap();
        let args = Line::parse_from([&["exec"], line].concat()).args;
        let process = plan(&args, &places, || Ok(dir.path().to_owned())).unwrap();
        process.env().clone().unwrap()
    }

    #[test]
    fn home_is_that_of_the_user_unless_it_was_given() {
        let plain = ["-t", "box", "sh"];
        let user = ["-u", "web", "box", "sh"];
        let given = ["-u", "web", "-e", "HOME=/x", "box", "sh"];
        let both = "HOME,TERM";
        assert_eq!(env_of(&plain, both), ["A=1", "HOME=/root", "TERM=xterm"]);
        assert_eq!(env_of(&user, both), ["A=1", "HOME=/srv"]);
        assert_eq!(env_of(&given, both), ["A=1", "HOME=/x"]);
        assert_eq!(env_of(&user, "TERM"), ["A=1", "HOME=/root"]);
    }
}
