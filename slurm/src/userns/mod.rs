//! What must run as root of a user namespace: removing what the bubble's users own, and probing the kernel.
//!
//! The parent starts this program anew (`hpk-bubble in-userns …`), since only a single-threaded process may enter a user
//! namespace. Where the host doesn't let this program make one, or not use it, Apptainer does: Ubuntu's AppArmor, for one,
//! wants a profile for each program, and has one for Apptainer.

pub mod probe;
pub mod remove;

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{ExitCode, Output};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use nix::sched::{CloneFlags, unshare};

use crate::logs::last_lines;

/// What the child does.
#[derive(Debug, Clone, Subcommand)]
pub enum Task {
    /// Remove what is in a folder, whose files have subordinate owners.
    Empty { dir: PathBuf },
    /// Be root of the namespaces.
    Probe,
    /// Mount an overlay on a tmpfs that hides this folder, in a mount namespace that ends with it.
    ProbeOverlay { dir: PathBuf },
    /// Offer the kernel the rules of a pod network, in a network namespace that ends with it.
    ProbeNftables,
}

/// Exit code of a child that had its namespaces, and failed there. With any other failure nothing was tried.
const FAILED: u8 = 3;

/// The child's part. Its namespaces are made here, unless it has been `entered` into some.
pub fn run(task: &Task, entered: bool) -> Result<ExitCode> {
    if !entered {
        match task {
            Task::Empty { .. } => become_root_of_all_ids(),
            Task::Probe => become_root_of(CloneFlags::empty()),
            Task::ProbeOverlay { .. } => become_root_of(CloneFlags::CLONE_NEWNS),
            Task::ProbeNftables => become_root_of(CloneFlags::CLONE_NEWNET),
        }?;
    }
    let done = match task {
        Task::Empty { dir } => remove::empty(dir),
        Task::Probe => Ok(()),
        Task::ProbeOverlay { dir } => probe::overlay(dir),
        Task::ProbeNftables => probe::nftables(),
    };
    Ok(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hpk: {error:#}");
            ExitCode::from(FAILED)
        }
    })
}

/// Why a task was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It was tried, and failed so.
    Failed(String),
    /// It could not be tried.
    Untried(String),
}

impl Failure {
    fn untried(error: &anyhow::Error) -> Self {
        Self::Untried(format!("{error:#}"))
    }
}

/// What a child has said by its end.
fn judge(output: Result<Output>) -> Result<(), Failure> {
    let output = output.map_err(|error| Failure::untried(&error))?;
    if output.status.success() {
        return Ok(());
    }
    let text = last_lines(&String::from_utf8_lossy(&output.stderr), 3);
    let text = match text.trim_start_matches("hpk: ") {
        "" => output.status.to_string(),
        text => text.to_owned(),
    };
    Err(match output.status.code() {
        Some(code) if code == i32::from(FAILED) => Failure::Failed(text),
        _ => Failure::Untried(text),
    })
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Failed(text) | Self::Untried(text)) = self;
        f.write_str(text)
    }
}

/// Enters a user namespace, as its root and only user, with others of its own.
fn become_root_of(others: CloneFlags) -> Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(CloneFlags::CLONE_NEWUSER | others).context("making a user namespace")?;
    std::fs::write("/proc/self/setgroups", "deny").context("writing setgroups")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context("writing uid_map")?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("writing gid_map")
}

/// Enters a user namespace, says so, and is its root when the parent has written its maps.
fn become_root_of_all_ids() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER).context("making a user namespace")?;
    println!("ready");
    let mut answer = String::new();
    std::io::stdin()
        .read_to_string(&mut answer)
        .context("waiting for the maps")?;
    nix::unistd::setresgid(0.into(), 0.into(), 0.into()).context("becoming group 0")?;
    nix::unistd::setresuid(0.into(), 0.into(), 0.into()).context("becoming user 0")
}
