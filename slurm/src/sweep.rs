//! What clusters left that could not end in order (a host that lost power, a SIGKILL): their
//! secrets, contexts and node-local folders go when the user's next cluster starts.
//!
//! Where several of Slurm's clusters share a home, each sees to its own: it doesn't know the others' jobs.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result};

use crate::allocation::{output, slurm_cluster, variables};
use crate::clock::now;
use crate::cluster::Folder;
use crate::{attempts, files, kubeconfig, local, settings};

/// How many ended clusters' logs are kept.
const KEPT: usize = 10;

/// The user's jobs that Slurm knows, running or waiting.
fn known_jobs() -> Result<HashSet<String>> {
    let jobs = output("squeue", &["--me", "--noheader", "--format=%A"])?;
    Ok(jobs.split_whitespace().map(str::to_owned).collect())
}

/// Names that only a job can have given: those of `prepare` are the user's to remove.
fn is_job(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether this cluster of Slurm's knows whether the job runs.
fn is_ours(hpk_home: &Path, id: &str) -> bool {
    let slurm = slurm_cluster(&variables());
    let folder = Folder::of(hpk_home, id);
    folder.anothers(slurm.as_deref(), now()).is_none()
}

/// Ended jobs among these ids.
fn ended<'a>(ids: impl Iterator<Item = &'a str>, known: &HashSet<String>) -> Vec<String> {
    ids.filter(|id| is_job(id) && !known.contains(*id))
        .map(str::to_owned)
        .collect()
}

/// In the shared home: secrets and contexts of jobs that are no more, and the oldest logs.
pub fn sweep_home(hpk_home: &Path) -> Result<()> {
    let clusters = hpk_home.join("clusters");
    let ids = files::names(&clusters)?;
    let (with_secrets, without): (Vec<_>, Vec<_>) = ids
        .iter()
        .map(String::as_str)
        .filter(|id| is_job(id) && is_ours(hpk_home, id))
        .partition(|id| Folder::of(hpk_home, id).pki().exists());
    let ended = match with_secrets.is_empty() {
        true => Vec::new(),
        false => ended(with_secrets.into_iter(), &known_jobs()?),
    };
    let secrets = ended.iter().flat_map(|id| {
        [
            kubeconfig::unregister(hpk_home, id),
            Folder::of(hpk_home, id).remove_secrets(),
        ]
    });
    let logs = oldest(without.iter().map(|id| clusters.join(id)).collect(), KEPT);
    let logs = logs.iter().map(|path| {
        fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))
    });
    attempts::all(secrets.chain(logs))
}

/// All but the newest of these.
fn oldest(paths: Vec<PathBuf>, kept: usize) -> Vec<PathBuf> {
    let mut dated: Vec<_> = paths
        .into_iter()
        .map(|path| {
            let modified = path.metadata().and_then(|metadata| metadata.modified());
            (modified.unwrap_or(SystemTime::UNIX_EPOCH), path)
        })
        .collect();
    dated.sort();
    dated.truncate(dated.len().saturating_sub(kept));
    dated.into_iter().map(|(_, path)| path).collect()
}

/// On this host: folders of jobs that are no more, by their names and as they are written down.
pub fn sweep_local(hpk_home: &Path, host: &str) -> Result<()> {
    let parent = settings::local_parent();
    let mut ids: BTreeSet<String> = local::list(&parent)?
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    for id in files::names(&hpk_home.join("clusters"))? {
        if Folder::of(hpk_home, &id).local_record(host).exists() {
            ids.insert(id);
        }
    }
    ids.retain(|id| is_job(id) && is_ours(hpk_home, id));
    ids.remove(&std::env::var("SLURM_JOB_ID").unwrap_or_default());
    if ids.is_empty() {
        return Ok(());
    }
    let ended = ended(ids.iter().map(String::as_str), &known_jobs()?);
    attempts::all(
        ended
            .iter()
            .map(|id| local::clean(&Folder::of(hpk_home, id), id, host, &parent)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_jobs_that_slurm_has_forgotten_have_ended() {
        let known = HashSet::from(["8".to_owned()]);
        let ids = ["7", "8", "mine", ""];
        assert_eq!(ended(ids.into_iter(), &known), ["7"]);
    }

    #[test]
    fn the_newest_logs_stay() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..3)
            .map(|n| {
                let path = dir.path().join(n.to_string());
                fs::create_dir(&path).unwrap();
                let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + n);
                fs::File::open(&path).unwrap().set_modified(at).unwrap();
                path
            })
            .collect();
        assert_eq!(oldest(paths.clone(), 2), [paths[0].clone()]);
        assert!(oldest(paths, 3).is_empty());
    }
}
