//! What the kernel lets users do, tried.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use cni_hpk::netlink::nat::nft;
use nix::mount::{MsFlags, mount};

use super::{Failure, judge};
use crate::{apptainer, own_path, settings};

/// Who makes namespaces here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// This program.
    Own,
    /// Apptainer, and not this program.
    Apptainer,
}

impl Maker {
    /// The one that may; else why neither may.
    pub fn find() -> Result<Self, String> {
        let Err(own) = Self::Own.probe(&["probe"]) else {
            return Ok(Self::Own);
        };
        match Self::Apptainer.probe(&["probe"]) {
            Ok(()) => Ok(Self::Apptainer),
            Err(other) => Err(format!("{own}; by Apptainer: {other}")),
        }
    }

    /// Whether an overlay can be mounted.
    pub fn probe_overlay(self) -> Result<(), Failure> {
        let dir = settings::local_parent();
        self.probe(&["probe-overlay", &dir.to_string_lossy()])
    }

    /// Whether the rules of a pod network are taken.
    pub fn probe_nftables(self) -> Result<(), Failure> {
        self.probe(&["probe-nftables"])
    }

    fn probe(self, task: &[&str]) -> Result<(), Failure> {
        judge(match self {
            Self::Own => run_task(task),
            Self::Apptainer => apptainer::run_task(task, &settings::local_parent()),
        })
    }
}

fn run_task(task: &[&str]) -> Result<Output> {
    let mut command = Command::new(own_path()?);
    let output = command.arg("in-userns").args(task).output();
    output.context("starting the probe")
}

/// The child's: on a tmpfs that hides `dir`.
pub(super) fn overlay(dir: &Path) -> Result<()> {
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

/// The child's.
pub(super) fn nftables() -> Result<()> {
    nft::probe().context("offering the kernel a rule")
}
