//! A container's task: made through the shim, found again, and taken down.

use std::time::Duration;

use anyhow::Context as _;
use hpk_images::container_defaults::parse_bounding;
use hpk_images::{Mounter, user};
use hpk_shim_client::{
    Bootstrap, CreateRequest, Error, Mount, Shim, Stdio, TaskStatus, delete_binary, read_address,
};
use hpk_userns::Mapped;

use crate::config::Config;
use crate::container::{self, Places, Record};
use crate::{network, sweep};

/// containerd namespace: containers of hpktainer apart from the kubelet's.
const NAMESPACE: &str = "hpktainer";

/// How the shim is started.
pub fn bootstrap(config: &Config, places: &Places) -> Bootstrap {
    Bootstrap::new(&config.shim, NAMESPACE, places.run.join("events"))
}

/// Starts the shim and creates the task over the image at `lower`.
pub async fn create(
    config: &Config,
    places: &Places,
    id: &str,
    lower: &std::path::Path,
    stdio: Stdio,
) -> anyhow::Result<Shim> {
    let (upper, work) = (places.upper(), places.root.join("work"));
    let rootfs = hpk_images::overlay::rootfs_mounts(lower, &upper, &work);
    let shim = Shim::start(&bootstrap(config, places), id, &places.bundle()).await;
    let shim = shim.with_context(|| format!("starting the runtime {}", config.shim.display()))?;
    let request = CreateRequest {
        id: id.to_owned(),
        bundle: places.bundle(),
        rootfs: rootfs.into_iter().map(to_shim).collect(),
        stdio,
    };
    match shim.create(request).await {
        Ok(_) => Ok(shim),
        Err(e) => Err(in_its_words(e, "creating the container")),
    }
}

/// Lets the program (or, with an exec id, the further one) go.
pub async fn start(shim: &Shim, id: &str, exec_id: &str) -> anyhow::Result<()> {
    match shim.start_task(id, exec_id).await {
        Ok(_) => Ok(()),
        Err(e) => Err(in_its_words(e, "starting the program")),
    }
}

/// The program can't be run; the exit code is the one that shells and Docker give.
#[derive(Debug)]
pub struct CannotRun {
    pub code: u8,
    words: String,
}

impl std::fmt::Display for CannotRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.words)
    }
}

impl std::error::Error for CannotRun {}

/// The exit code that a shim's words mean: 127 for a program that isn't there, 126 for one that can't be executed.
/// The Task API has no code for either; the words are runc's, which other shims repeat and Docker reads too.
fn cannot_run(words: &str) -> Option<u8> {
    let (_, exec) = words.split_once("exec: \"")?;
    let absent = ["executable file not found", "no such file or directory"];
    let refused = ["permission denied", "exec format error"];
    let says = |list: &[&str]| list.iter().any(|text| exec.to_lowercase().contains(text));
    match (says(&absent), says(&refused)) {
        (true, _) => Some(127),
        (_, true) => Some(126),
        _ => None,
    }
}

/// A call's failure as the shim words it, without the protocol around it.
pub fn in_its_words(error: Error, attempted: &'static str) -> anyhow::Error {
    match error.shim_message() {
        Some(words) => {
            let words = format!("{attempted}: {words}");
            match cannot_run(&words) {
                Some(code) => CannotRun { code, words }.into(),
                None => anyhow::Error::msg(words),
            }
        }
        None => anyhow::Error::new(error).context(attempted),
    }
}

fn to_shim(mount: hpk_images::Mount) -> Mount {
    Mount {
        kind: mount.kind,
        source: mount.source,
        options: mount.options,
    }
}

/// The shim of a container that was made before; none if it has gone.
pub async fn reach(places: &Places) -> anyhow::Result<Option<Shim>> {
    let Some(address) = read_address(&places.bundle())? else {
        return Ok(None);
    };
    match Shim::connect(&address).await {
        Ok(shim) => Ok(Some(shim)),
        Err(Error::Connect { .. }) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Made or being made, not started.
    Created,
    /// It runs.
    Running,
    /// It ended with this code.
    Exited(u32),
    /// Its shim is gone, and how it ended with it; nobody will write that down.
    Lost,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Created => write!(f, "Created"),
            Self::Running => write!(f, "Running"),
            Self::Exited(code) => write!(f, "Exited ({code})"),
            Self::Lost => write!(f, "Lost"),
        }
    }
}

/// What is known of it: by its shim, or by what its hpktainer has written down.
pub async fn status(config: &Config, record: &Record) -> anyhow::Result<Status> {
    if let Some(code) = record.exit {
        return Ok(Status::Exited(code));
    }
    if let Some(status) = ask(config, &record.id).await? {
        return Ok(status);
    }
    let is_owned = sweep::is_owned(config, &record.id)?;
    // Read after that: the end is written down before the shim goes.
    let now = container::search(config, &record.id)?;
    Ok(match now.and_then(|record| record.exit) {
        Some(code) => Status::Exited(code),
        None if is_owned => Status::Created,
        None => Status::Lost,
    })
}

/// Asks the shim; none where that has gone, or there is none yet.
pub async fn ask(config: &Config, id: &str) -> anyhow::Result<Option<Status>> {
    let Some(shim) = reach(&Places::of(config, id)).await? else {
        return Ok(None);
    };
    Ok(match shim.state(id, "").await {
        Err(e) if e.is_not_found() || e.is_gone() => None,
        Err(e) => return Err(e.into()),
        Ok(state) => match (state.status, state.exit) {
            (TaskStatus::Created, _) => Some(Status::Created),
            (TaskStatus::Stopped, exit) => exit.map(|e| Status::Exited(e.code)),
            _ => Some(Status::Running),
        },
    })
}

/// Asks the container to stop, kills it after `patience`, and waits for its end.
pub async fn stop(shim: &Shim, id: &str, signal: u32, patience: Duration) -> anyhow::Result<u32> {
    let kill = async |signal| match shim.kill(id, "", signal, false).await {
        Err(e) if !(e.is_not_found() || e.is_gone() || e.is_failed_precondition()) => Err(e),
        _ => Ok(()),
    };
    kill(signal).await?;
    if let Ok(exit) = tokio::time::timeout(patience, shim.wait(id, "")).await {
        return Ok(exit?.code);
    }
    kill(libc::SIGKILL.unsigned_abs()).await?;
    Ok(shim.wait(id, "").await?.code)
}

/// Takes down all of a container but its record and log: task, shim, network, mounts, claim, writable layer. Each step is
/// harmless when done before; all are tried, and what failed is told together.
pub async fn remove(config: &Config, record: &Record) -> anyhow::Result<()> {
    let places = Places::of(config, &record.id);
    let mut failures: Vec<anyhow::Error> = Vec::new();
    let mut note = |done: anyhow::Result<()>| failures.extend(done.err());
    note(remove_task(config, &places, &record.id).await);
    note(network::detach(config, &places, record).await);
    let unmounted = unmount(&places).await;
    if unmounted.is_ok() {
        note(crate::claim::give_back(&record.id).await);
    }
    note(unmounted);
    let layers = ["upper", "work", "etc"].map(|dir| places.root.join(dir));
    for dir in layers.iter().chain([&places.run]) {
        match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                note(Err(
                    anyhow::Error::new(e).context(format!("removing {}", dir.display()))
                ));
            }
            _ => {}
        }
    }
    note(container::remove_file(&places.made_sif()));
    match failures.is_empty() {
        true => Ok(()),
        false => {
            let all: Vec<String> = failures.iter().map(|f| format!("{f:#}")).collect();
            Err(anyhow::anyhow!(
                "cleaning up {}: {}",
                record.name,
                all.join("; ")
            ))
        }
    }
}

/// Unmounts the container's image; one that isn't mounted is fine.
pub async fn unmount(places: &Places) -> anyhow::Result<()> {
    let mounter = Mounter::new(places.run.join("images"));
    for digest in mounter.mounted().await? {
        mounter.release(&digest).await?;
    }
    Ok(())
}

async fn remove_task(config: &Config, places: &Places, id: &str) -> anyhow::Result<()> {
    if !places.bundle().exists() {
        return Ok(());
    }
    if let Some(shim) = reach(places).await? {
        stop(
            &shim,
            id,
            libc::SIGKILL.unsigned_abs(),
            Duration::from_secs(10),
        )
        .await
        .or_else(ignore_gone)?;
        match shim.delete(id, "").await {
            Err(e) if !(e.is_not_found() || e.is_gone()) => {
                return Err(e).context("deleting the task");
            }
            _ => {}
        }
        // Another hpktainer may end it at the same moment; what counts is that it's gone.
        return match shim.shutdown(id).await {
            Err(e) if reach(places).await?.is_some() => Err(e).context("ending the shim"),
            _ => Ok(()),
        };
    }
    if places.bundle().join("config.json").exists() && config.shim.exists() {
        let done = delete_binary(&bootstrap(config, places), id, &places.bundle()).await;
        done.context("cleaning up behind the shim")?;
    }
    // A killed shim leaves its socket.
    let address = read_address(&places.bundle())?;
    match address.as_deref().and_then(|it| it.strip_prefix("unix://")) {
        Some(socket) => container::remove_file(socket.as_ref()),
        None => Ok(()),
    }
}

fn ignore_gone(error: anyhow::Error) -> anyhow::Result<u32> {
    match error.downcast_ref::<Error>() {
        Some(e) if e.is_not_found() || e.is_gone() => Ok(0),
        _ => Err(error),
    }
}

/// The user of an image, and what capabilities there are.
pub fn lookups(lower: &std::path::Path, wanted: &str) -> anyhow::Result<(user::User, u64)> {
    let user = user::resolve(lower, wanted)?.within(&Mapped::here()?);
    let status =
        std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let bounding = parse_bounding(&status).context("no CapBnd in /proc/self/status")?;
    Ok((user, bounding))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_be_run_has_the_code_that_shells_give() {
        for (words, code) in [
            ("exec: \"x\": executable file not found in $PATH", Some(127)),
            (
                "creating: exec: \"/x\": no such file or directory: unknown",
                Some(127),
            ),
            ("exec: \"/etc\": permission denied", Some(126)),
            ("exec: \"/x\": Exec format error", Some(126)),
            ("mount x: permission denied", None),
        ] {
            assert_eq!(cannot_run(words), code, "{words}");
        }
    }
}
