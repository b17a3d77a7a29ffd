//! The part of a host's cgroup trees in which pods can have limits, where the site gives one.
//!
//! On cgroup v2 that is the job's own cgroup, if the site delegates it to the user. On v1, or where
//! it is another, HPK_CGROUP names it, below each hierarchy's mount.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use hpk_cgroup::{Hierarchy, delegated, hierarchies};

/// HPK_CGROUP.
fn named() -> Option<PathBuf> {
    let name = std::env::var_os("HPK_CGROUP").filter(|name| !name.is_empty());
    name.map(PathBuf::from)
}

fn probe() -> Result<Vec<Hierarchy>> {
    hierarchies::probe().context("looking for cgroups")
}

/// Moves this process there, and with it all that it starts.
pub fn enter(cluster: &str) -> Result<()> {
    let name = named();
    delegated::enter(&probe()?, name.as_deref(), cluster).context("HPK_CGROUP")?;
    Ok(())
}

/// Moves this process out again, and removes what `enter` and the pods made; all else of the
/// cluster must have ended.
pub fn leave(cluster: &str) -> Result<()> {
    delegated::leave(&probe()?, named().as_deref(), cluster).context("leaving the cgroup")
}

/// Controllers whose limits pods can have.
pub fn usable() -> Result<Vec<String>> {
    Ok(delegated::usable(&probe()?, named().as_deref()))
}

/// The memory in bytes that this process's cgroup, or one around it, has at most.
pub fn memory_limit() -> Result<Option<u64>> {
    hierarchies::memory_limit(&probe()?).context("reading this job's limit of memory")
}

/// Removes what ended jobs left in it.
pub fn sweep() -> Result<()> {
    if let Some(name) = named() {
        delegated::sweep(&probe()?, &name).context("HPK_CGROUP")?;
    }
    Ok(())
}
