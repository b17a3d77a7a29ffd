//! What killed ones left: done away with by the next `run`.
//!
//! An hpktainer holds the lock of its container's folder. Where the lock is free and the container's runtime is gone,
//! nobody will clean up any more. (In a bubble a container may outlive its hpktainer; that one is left to `rm -f`.)

use std::fs::{self, File};
use std::time::Duration;

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};

use crate::config::Config;
use crate::container::{self, Places, Record};
use crate::locks::{lock, try_lock};
use crate::{rm, task};

/// Held while folders are made or swept, so that none is swept that is just being made.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code)] Flock<File>);

/// Held as long as a container's hpktainer lives.
#[derive(Debug)]
pub struct Owner(#[allow(dead_code)] Flock<File>);

/// What a container leaves behind that was killed with its hpktainer: as SIGKILL does.
pub const KILLED: u32 = 128 + libc::SIGKILL.unsigned_abs();

/// Waits for the turn.
pub fn turn(config: &Config) -> anyhow::Result<Turn> {
    container::make_dir(&config.root)?;
    Ok(Turn(lock(
        &config.root.join("turn"),
        FlockArg::LockExclusive,
    )?))
}

/// Takes the lock of a container's folder.
pub fn own(_turn: &Turn, config: &Config, id: &str) -> anyhow::Result<Owner> {
    let path = config.root.join(id).join("owner");
    Ok(Owner(lock(&path, FlockArg::LockExclusive)?))
}

/// Cleans up behind every container whose hpktainer and runtime are gone. What can't be cleaned up is told and left: it
/// must not keep others from running.
pub async fn sweep(_turn: &Turn, config: &Config) -> anyhow::Result<()> {
    let listing = || format!("listing {}", config.root.display());
    for entry in fs::read_dir(&config.root).with_context(listing)? {
        let folder = entry.with_context(listing)?.path();
        if !folder.is_dir() {
            continue;
        }
        let locked = try_lock(&folder.join("owner"), FlockArg::LockExclusiveNonblock);
        let _owner = match locked {
            Ok(Some(owner)) => owner,
            // Another lives, or has just gone by itself.
            Ok(None) => continue,
            Err(_) if !folder.exists() => continue,
            Err(error) => return Err(error),
        };
        let id = folder.file_name().unwrap_or_default().to_string_lossy();
        // Read under the lock: until then its own process may write it.
        let records = container::list(config)?;
        let swept = match records.iter().find(|record| record.id == id) {
            // It was killed before it had written the record, or after it had removed it.
            None => rm::abandon(&Places::of(config, &id), &id).await,
            Some(record) if record.cleaned_up && record.auto_remove => {
                rm::forget(&Places::of(config, &id))
            }
            Some(record) if record.cleaned_up => Ok(()),
            Some(record) => settle(config, record.clone()).await,
        };
        if let Err(error) = swept {
            eprintln!("hpktainer: {error:#}");
        }
    }
    Ok(())
}

/// Whether a container's hpktainer lives. (A sweep that is just looking at it seems to be one.)
pub fn is_owned(config: &Config, id: &str) -> anyhow::Result<bool> {
    let folder = config.root.join(id);
    // Shared: those who ask don't see each other.
    match try_lock(&folder.join("owner"), FlockArg::LockSharedNonblock) {
        Ok(free) => Ok(free.is_none()),
        Err(_) if !folder.exists() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Leaves it to a container's own hpktainer, as long as that lives, to clean up, and to forget it if it was run with --rm,
/// for a moment. Gives the record as it is then; none where the container was forgotten.
pub async fn settled(config: &Config, record: &Record) -> anyhow::Result<Option<Record>> {
    const ROUNDS: u32 = 50;
    const LOOK: Duration = Duration::from_millis(100);
    for _ in 0..ROUNDS {
        let is_owned = is_owned(config, &record.id)?;
        // Read after that: what its last act was is in it.
        let now = container::search(config, &record.id)?;
        match now {
            Some(now) if is_owned && (now.auto_remove || !now.cleaned_up) => {
                tokio::time::sleep(LOOK).await;
            }
            now => return Ok(now),
        }
    }
    container::search(config, &record.id)
}

async fn settle(config: &Config, record: Record) -> anyhow::Result<()> {
    match record.exit {
        // Killed while it cleaned up.
        Some(code) => bury(config, record, code).await,
        None if task::ask(config, &record.id).await?.is_some() => Ok(()),
        None => bury(config, record, KILLED).await,
    }
}

/// Cleans up behind a container that ended with `code`, or as its record says.
pub async fn bury(config: &Config, mut record: Record, code: u32) -> anyhow::Result<()> {
    task::remove(config, &record).await?;
    record.set_cleaned_up(record.exit.unwrap_or(code));
    record.save(config)?;
    match record.auto_remove {
        true => rm::forget_by_itself(&Places::of(config, &record.id)).await,
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::tests::record;

    #[tokio::test]
    async fn only_what_nobody_owns_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            root: dir.path().join("root"),
            run: dir.path().join("run"),
            netns: dir.path().join("netns"),
            ..Config::from_env()
        };
        let turn = turn(&config).unwrap();
        let make = |id: &str, auto_remove: bool, exit: Option<u32>| {
            let made = Record {
                auto_remove,
                exit,
                ip: Some("10.88.0.2".to_owned()),
                ..record(id, id)
            };
            container::make_dir(&config.root.join(id)).unwrap();
            made.save(&config).unwrap();
        };
        make("killed", false, None);
        make("killed-rm", true, None);
        make("living", true, None);
        make("killed-cleaning", false, Some(3));
        container::make_dir(&config.root.join("half-made")).unwrap();
        let _living = own(&turn, &config, "living").unwrap();
        sweep(&turn, &config).await.unwrap();
        let mut left: Vec<_> = container::list(&config).unwrap();
        left.sort_by(|a, b| a.id.cmp(&b.id));
        let left: Vec<_> = left
            .iter()
            .map(|r| (r.id.as_str(), r.exit, r.cleaned_up, r.ip.as_deref()))
            .collect();
        assert_eq!(
            left,
            [
                ("killed", Some(KILLED), true, None),
                ("killed-cleaning", Some(3), true, None),
                ("living", None, false, Some("10.88.0.2"))
            ]
        );
        assert!(!config.root.join("half-made").exists());
    }

    #[tokio::test]
    async fn what_its_hpktainer_makes_or_has_ended_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            root: dir.path().join("root"),
            run: dir.path().join("run"),
            ..Config::from_env()
        };
        let turn = turn(&config).unwrap();
        let before = record("a", "a");
        container::make_dir(&config.root.join("a")).unwrap();
        before.save(&config).unwrap();
        let status = async || task::status(&config, &before).await.unwrap();
        assert_eq!(status().await, task::Status::Lost);
        let _owner = own(&turn, &config, "a").unwrap();
        assert_eq!(status().await, task::Status::Created);
        // Meanwhile written down: who has the old record learns of it, too.
        let ended = Record {
            exit: Some(4),
            ..before.clone()
        };
        ended.save(&config).unwrap();
        assert_eq!(status().await, task::Status::Exited(4));
    }
}
