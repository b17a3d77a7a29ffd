//! What must run in a user namespace of its own: removing what the bubble's users own, and
//! probing the kernel.
//!
//! The parent starts this program anew (`hpk-bubble in-userns …`), since only a single-threaded
//! process may enter a user namespace; the child says when it is in one and waits for its maps.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use cni_hpk::netlink::nat::nft;
use hpk_userns::Ids;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::{own_path, settings};

/// What the child does.
#[derive(Debug, Clone, Subcommand)]
pub enum Task {
    /// Remove a folder whose files have subordinate owners.
    Remove { dir: PathBuf },
    /// Mount an overlay on a tmpfs that hides this folder, in a mount namespace that ends with it.
    ProbeOverlay { dir: PathBuf },
    /// Offer the kernel the rules of a pod network, in a network namespace that ends with it.
    ProbeNftables,
}

/// Exit code of a probe that got no namespaces to try it in: nothing is known then.
pub const UNTRIED: u8 = 3;

/// The child's part.
pub fn run(task: &Task) -> Result<ExitCode> {
    match task {
        Task::Remove { dir } => {
            unshare(CloneFlags::CLONE_NEWUSER).context("making a user namespace")?;
            println!("ready");
            let mut answer = String::new();
            std::io::stdin()
                .read_to_string(&mut answer)
                .context("waiting for the maps")?;
            nix::unistd::setresgid(0.into(), 0.into(), 0.into()).context("becoming group 0")?;
            nix::unistd::setresuid(0.into(), 0.into(), 0.into()).context("becoming user 0")?;
            std::fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        Task::ProbeOverlay { dir } => {
            return probe(CloneFlags::CLONE_NEWNS, || probe_overlay(dir));
        }
        Task::ProbeNftables => {
            let offer = || nft::probe().context("offering the kernel a rule");
            return probe(CloneFlags::CLONE_NEWNET, offer);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn probe(namespace: CloneFlags, attempt: impl FnOnce() -> Result<()>) -> Result<ExitCode> {
    if let Err(error) = become_root_of(namespace) {
        eprintln!("hpk: {error:#}");
        return Ok(ExitCode::from(UNTRIED));
    }
    attempt().map(|()| ExitCode::SUCCESS)
}

/// Enters a user namespace, as its root and only user, with others of its own.
fn become_root_of(others: CloneFlags) -> Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(CloneFlags::CLONE_NEWUSER | others).context("making a user namespace")?;
    std::fs::write("/proc/self/setgroups", "deny").context("writing setgroups")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context("writing uid_map")?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("writing gid_map")
}

fn probe_overlay(dir: &Path) -> Result<()> {
    mount(
        Some("tmpfs"),
        dir,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("mounting a tmpfs")?;
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(dir.join(name)).with_context(|| format!("making {name}"))?;
    }
    let at = |name: &str| dir.join(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},userxattr",
        at("lower"),
        at("upper"),
        at("work")
    );
    mount(
        Some("overlay"),
        &dir.join("merged"),
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .context("mounting an overlay")
}

/// Removes `dir`, with the help of a user namespace where its files belong to subordinate ids, or where
/// the user's own folders are closed to itself.
pub fn remove_tree(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {} // files of others: tried again below, where its error counts
    }
    let ids = Ids::of_this_user(&settings::search_path())?;
    let mut child = Command::new(own_path()?)
        .args(["in-userns", "remove"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the remover")?;
    let pid = child.id();
    let mapped = child
        .stdout
        .take()
        .context("the remover has no output")
        .and_then(|output| {
            let mut line = String::new();
            BufReader::new(output)
                .read_line(&mut line)
                .context("awaiting the remover")?;
            Ok(ids.map(pid)?)
        });
    if let Some(mut input) = child.stdin.take() {
        // A remover that has failed already says so by its exit code.
        let _ = input.write_all(b"go");
    }
    let output = child.wait_with_output().context("awaiting the remover")?;
    mapped?;
    if !output.status.success() {
        bail!(
            "removing {} in a user namespace: {}",
            dir.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
