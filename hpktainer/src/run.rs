//! `hpktainer run`

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use hpk_images::overlay::make_volumes;
use hpk_images::process_defaults::{ProcessDefaults, merge_env, signal_number};
use hpk_images::{Mounter, PullPolicy, Store};
use hpk_shim_client::{Shim, Stdio, serve_events};

use crate::claim::claim;
use crate::config::Config;
use crate::container::{self, Places, Record};
use crate::image::{Name, Root};
use crate::limits::Limits;
use crate::publish::{self, Publish};
use crate::settings::{self, Binds, Net};
use crate::spec::{self, Around, Run, Volume};
use crate::stdio::{Pipes, Signals, serve};
use crate::sweep::Owner;
use crate::words::{Named, Words};
use crate::{detach, network, rm, sweep, task};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "hpktainer run [OPTIONS] IMAGE [COMMAND]...")]
pub struct Args {
    /// Forget the container when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Pass stdin on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Run in the background, print the container's id
    #[arg(short, long)]
    pub detach: bool,
    /// NAME=value, or NAME to pass on the caller's value
    #[arg(short, long, value_name = "NAME[=value]", value_parser = settings::parse_env)]
    pub env: Vec<String>,
    /// File with lines NAME=value, or NAME to pass on the caller's value; --env goes before it
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// SOURCE:TARGET[:ro]; a relative source begins with . or ..
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    pub volume: Vec<Volume>,
    /// SOURCE[:TARGET[:ro]], several with commas between
    #[arg(short = 'B', long, value_name = "SOURCE[:TARGET[:ro]]")]
    pub bind: Vec<Binds>,
    /// A port that leads to one of the container's: [[ADDRESS:]HOST_PORT:]PORT[/udp]
    #[arg(short, long, value_name = "[[ADDRESS:]HOST_PORT:]PORT[/udp]")]
    pub publish: Vec<Publish>,
    /// The container's network
    #[arg(long, alias = "network", value_enum, default_value_t)]
    pub net: Net,
    #[command(flatten)]
    pub limits: Limits,
    /// With NVIDIA's driver and devices
    #[arg(long)]
    pub nv: bool,
    /// With AMD's
    #[arg(long)]
    pub rocm: bool,
    /// Working directory
    #[arg(short, long)]
    pub workdir: Option<String>,
    /// USER[:GROUP], names or numbers
    #[arg(short, long)]
    pub user: Option<String>,
    /// Program instead of the image's entrypoint; empty: none
    #[arg(long)]
    pub entrypoint: Option<String>,
    /// Name, by default the id
    #[arg(long)]
    pub name: Option<String>,
    /// Hostname, by default the id
    #[arg(long)]
    pub hostname: Option<String>,
    /// When to ask the registry: always, missing, never
    #[arg(long, default_value = "missing", value_parser = parse_policy)]
    pub pull: PullPolicy,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub image: Words<Name>,
}

impl Named for Name {
    const VALUES: [&'static str; 2] = ["IMAGE", "COMMAND"];
    const HELP: &'static str = "The image, e.g. docker://busybox:1.36, docker-archive:TAR[:TAG], oci:DIR[:TAG], \
        ./image.sif, a root's ./folder, library://NAME; then, if any, command and arguments instead of the image's";
    const LEAST: usize = 1;
}

fn parse_policy(text: &str) -> Result<PullPolicy, String> {
    match text {
        "always" => Ok(PullPolicy::Always),
        "missing" => Ok(PullPolicy::IfNotPresent),
        "never" => Ok(PullPolicy::Never),
        _ => Err("expected always, missing or never".to_owned()),
    }
}

/// Runs a container to its end and gives its exit code.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    check(&args)?;
    let store = Store::open(crate::config::store()?).await?;
    let mut signals = Signals::take()?;
    let (id, _owner) = reserve(config, args.name.as_deref()).await?;
    let places = Places::of(config, &id);
    let got = tokio::select! {
        got = claim(&store, &args, &id, &places) => got,
        _ = signals.any() => Err(anyhow::anyhow!("interrupted before the image was there")),
    };
    let (claim, begun) = match got {
        Err(e) => (None, Err(e)),
        Ok((claim, root)) => {
            let record = make_record(config, &args, &id, &places, &root).await;
            (claim, record.map(|(record, lower)| (record, root, lower)))
        }
    };
    let (ran, record) = match begun {
        Err(e) => (Err(e), None),
        Ok((mut record, root, lower)) => {
            let image = (&root, lower.as_path());
            let ran = run(config, &args, image, &places, &mut record, &mut signals).await;
            (ran, Some(record))
        }
    };
    let left = match claim {
        Some(claim) => claim.leave().await,
        None => Ok(()),
    };
    let removed = match record {
        // A pull or a mount at most.
        None => rm::abandon(&places, &id).await,
        Some(mut record) => finish(config, &args, &places, &mut record).await,
    };
    let removed = removed.and(left);
    match (ran, removed) {
        (Ok(code), Ok(())) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        (Ok(code), Err(e)) => {
            // The program's code goes before ours; what is left can be removed by `rm -f`.
            eprintln!("hpktainer: {e:#}");
            Ok(u8::try_from(code).unwrap_or(u8::MAX))
        }
        (Err(e), Ok(())) => Err(e),
        (Err(e), Err(more)) => Err(e.context(format!("and then: {more:#}"))),
    }
}

/// A folder for the container, which is this process's as long as it lives.
async fn reserve(config: &Config, name: Option<&str>) -> anyhow::Result<(String, Owner)> {
    let turn = sweep::turn(config)?;
    sweep::sweep(&turn, config).await?;
    // A pull may be long: so here, and once more before the record is written.
    name.map_or(Ok(()), |name| is_free(config, name))?;
    let id = container::random_id()?;
    container::make_dir(&config.root.join(&id))?;
    let owner = sweep::own(&turn, config, &id)?;
    Ok((id, owner))
}

fn is_free(config: &Config, name: &str) -> anyhow::Result<()> {
    match container::list(config)?.iter().any(|r| r.name == name) {
        true => bail!("there is a container {name:?} already (hpktainer rm {name})"),
        false => Ok(()),
    }
}

/// What can be found wrong before anything is made.
fn check(args: &Args) -> anyhow::Result<()> {
    if let (Some(port), Net::None | Net::Host) = (args.publish.first(), args.net) {
        bail!("--publish {port}: only with --net pod has a container an address to lead to");
    }
    if let Some(name) = &args.name {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || !name.chars().all(plain) {
            bail!("--name {name:?}: only letters, digits, dot, dash, underscore");
        }
    }
    if let Some(dir) = args.workdir.as_ref().filter(|dir| !dir.starts_with('/')) {
        bail!("--workdir {dir:?}: the path in the container must begin with /");
    }
    settings::absolute(volumes(args))?;
    args.limits.warn()
}

fn volumes(args: &Args) -> impl Iterator<Item = &Volume> {
    let binds = args.bind.iter().flat_map(|binds| &binds.0);
    args.volume.iter().chain(binds)
}

/// Mounts the image, where it is to be mounted, and writes the record.
async fn make_record(
    config: &Config,
    args: &Args,
    id: &str,
    places: &Places,
    root: &Root,
) -> anyhow::Result<(Record, PathBuf)> {
    let name = args.name.clone().unwrap_or_else(|| id.to_owned());
    let lower = root.lower(&Mounter::new(places.run.join("images"))).await?;
    let defaults = defaults(args, root, &lower)?;
    let stop_signal = defaults.stop_signal.as_deref().and_then(signal_number);
    let record = Record {
        id: id.to_owned(),
        name: name.clone(),
        image: args.image.of.to_string(),
        command: defaults.args,
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs()),
        stop_signal: stop_signal.unwrap_or(libc::SIGTERM.unsigned_abs()),
        ip: None,
        ports: Vec::new(),
        network: None,
        cni_cache: None,
        logged: args.detach,
        auto_remove: args.rm,
        exit: None,
        cleaned_up: false,
    };
    let _turn = sweep::turn(config)?;
    is_free(config, &name)?;
    record.save(config)?;
    Ok((record, lower))
}

fn defaults(args: &Args, root: &Root, lower: &Path) -> anyhow::Result<ProcessDefaults> {
    let entrypoint = args.entrypoint.clone().map(|e| vec![e]);
    let mut defaults = match args.entrypoint.as_deref() {
        // The command is the program then.
        Some("") if args.image.command.is_empty() => bail!("--entrypoint \"\" wants a command"),
        Some("") => root.defaults(lower, Some(&args.image.command), &[])?,
        _ => root.defaults(lower, entrypoint.as_deref(), &args.image.command)?,
    };
    let given = settings::read_env_files(&args.env_file)?;
    for entries in [&given, &args.env] {
        merge_env(
            &mut defaults.env,
            &env_entries(entries, |name| std::env::var(name).ok()),
        );
    }
    if let Some(dir) = &args.workdir {
        defaults.cwd.clone_from(dir);
    }
    if let Some(user) = &args.user {
        defaults.user.clone_from(user);
    }
    Ok(defaults)
}

/// `NAME` alone passes the caller's value on, if it has one; as with Docker.
pub fn env_entries(given: &[String], caller: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let full = |entry: &String| match entry.contains('=') {
        true => Some(entry.clone()),
        false => caller(entry).map(|value| format!("{entry}={value}")),
    };
    given.iter().filter_map(full).collect()
}

async fn run(
    config: &Config,
    args: &Args,
    (root, lower): (&Root, &Path),
    places: &Places,
    record: &mut Record,
    signals: &mut Signals,
) -> anyhow::Result<u32> {
    places.make()?;
    connect(config, args, places, record).await?;
    write_bundle(config, args, root, places, record, lower)?;

    // Events are hints; but a shim whose publishing fails complains.
    let mut events = serve_events(&places.run.join("events"))?;
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    if args.detach {
        let pipes = Pipes::of_input(&places.run, "main", args.interactive)?;
        let stderr = (!args.tty).then(|| logger_uri(config, places));
        let stdio = Stdio {
            // The shim holds both its ends: the program waits for what never comes, as by Docker.
            stdin: pipes.stdio.stdin,
            stdout: logger_uri(config, places),
            stderr: stderr.unwrap_or_default(),
            terminal: args.tty,
        };
        let shim = task::create(config, places, &record.id, lower, stdio).await?;
        task::start(&shim, &record.id, "").await?;
        detach::tell_started(&record.id)?;
        let code = wait_detached(&shim, record, signals).await?;
        tell_end(config, record, code);
        return Ok(code);
    }
    let pipes = Pipes::make(&places.run, "main", args.interactive, args.tty)?;
    let mut copying = pipes.connect()?;
    let shim = task::create(config, places, &record.id, lower, pipes.stdio.clone()).await?;
    task::start(&shim, &record.id, "").await?;
    let code = serve(&shim, &record.id, "", args.tty, &mut copying, signals).await;
    if let Ok(code) = code {
        tell_end(config, record, code);
    }
    // The shim lets go of the pipes, so that their end can be seen.
    let _ = shim.delete(&record.id, "").await;
    let drained = copying.drain().await;
    code.and_then(|code| drained.map(|()| code))
}

/// Others are to know how it ended before its shim, which they could ask, goes.
fn tell_end(config: &Config, record: &mut Record, code: u32) {
    record.exit = Some(code);
    // It is written once more when all is cleaned up; that tells where it can't be.
    let _ = record.save(config);
}

/// Network and published ports.
async fn connect(
    config: &Config,
    args: &Args,
    places: &Places,
    record: &mut Record,
) -> anyhow::Result<()> {
    match args.net {
        Net::Host => return Ok(()),
        Net::None => return network::isolate(places).await,
        Net::Pod => network::attach(config, places, record).await?,
    }
    let bound = publish::take(&args.publish)?;
    let ports: Result<_, _> = bound.iter().map(|bound| bound.publish()).collect();
    record.ports = ports?;
    let Some(ip) = record.ip.as_deref().filter(|_| !bound.is_empty()) else {
        return Ok(());
    };
    let ip = ip
        .parse()
        .with_context(|| format!("the container's address {ip}"))?;
    publish::serve(&places.netns, bound, ip)?;
    record.save(config)
}

fn logger_uri(config: &Config, places: &Places) -> String {
    format!(
        "binary://{}?path={}&max-size=10485760&max-files=5",
        config.logger.display(),
        places.log().display()
    )
}

/// In the background, a signal means that all is to end.
async fn wait_detached(shim: &Shim, record: &Record, signals: &mut Signals) -> anyhow::Result<u32> {
    const PATIENCE: Duration = Duration::from_secs(10);
    tokio::select! {
        exit = shim.wait(&record.id, "") => Ok(exit?.code),
        _ = signals.any() => task::stop(shim, &record.id, record.stop_signal, PATIENCE).await,
    }
}

fn write_bundle(
    config: &Config,
    args: &Args,
    root: &Root,
    places: &Places,
    record: &Record,
    lower: &Path,
) -> anyhow::Result<()> {
    let mut defaults = defaults(args, root, lower)?;
    make_volumes(lower, &places.upper(), &defaults.volumes)
        .context("making the image's volumes")?;
    let (user, bounding) = task::lookups(lower, &defaults.user)?;
    let hostname = args.hostname.as_deref().unwrap_or(&record.id);
    if !defaults.env.iter().any(|it| it.starts_with("HOSTNAME=")) {
        defaults.env.push(format!("HOSTNAME={hostname}"));
    }
    let etc = places.root.join("etc");
    network::write_files(config, &etc, hostname, record.ip.as_deref())?;
    let run = Run {
        defaults: &defaults,
        user: &user,
        terminal: args.tty,
        bounding,
    };
    let netns = (args.net != Net::Host).then_some(places.netns.as_path());
    let volumes = settings::absolute(volumes(args))?;
    let around = Around {
        hostname,
        netns,
        etc: &etc,
        volumes: &volumes,
        resources: args.limits.resources()?,
        cgroup: args.limits.cgroup(&record.id),
        squash: settings::squash_ids()?,
        gpu: settings::gpu(args.nv, args.rocm),
    };
    let spec = spec::container(&run, around)?;
    // The environment may hold secrets: 0600.
    container::write_file(
        &places.bundle().join("config.json"),
        0o600,
        &serde_json::to_vec_pretty(&spec)?,
    )
}

/// Everything but the record and log goes; these too with `--rm`, or when nothing ever ran.
async fn finish(
    config: &Config,
    args: &Args,
    places: &Places,
    record: &mut Record,
) -> anyhow::Result<()> {
    task::remove(config, record).await?;
    let Some(code) = record.exit else {
        return rm::forget(places);
    };
    record.set_cleaned_up(code);
    record.save(config)?;
    match args.rm {
        true => rm::forget_by_itself(places).await,
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_passes_the_callers_value_on() {
        let given = ["A=1", "B", "C"].map(str::to_owned);
        let entries = env_entries(&given, |name| (name == "B").then(|| "2".to_owned()));
        assert_eq!(entries, ["A=1", "B=2"]);
    }
}
