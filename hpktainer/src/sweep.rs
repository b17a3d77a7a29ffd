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
const KILLED: u32 = 128 + libc::SIGKILL.unsigned_abs();

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
            Some(record) if record.exit.is_none() => settle(config, record.clone()).await,
            Some(_) => Ok(()),
        };
        if let Err(error) = swept {
            eprintln!("hpktainer: {error:#}");
        }
    }
    Ok(())
}

/// Leaves it to a container's own hpktainer, as long as that lives, to write down how it ended, for a moment. Gives the
/// record as it is then; none where the container was forgotten.
pub async fn settled(config: &Config, record: &Record) -> anyhow::Result<Option<Record>> {
    const ROUNDS: u32 = 50;
    const LOOK: Duration = Duration::from_millis(100);
    let folder = config.root.join(&record.id);
    for _ in 0..ROUNDS {
        let free = try_lock(&folder.join("owner"), FlockArg::LockExclusiveNonblock);
        let is_owned = match free {
            Ok(free) => free.is_none(),
            Err(_) if !folder.exists() => false,
            Err(error) => return Err(error),
        };
        // Read after that: what its last act was is in it.
        let now = container::search(config, &record.id)?;
        match now {
            Some(now) if now.exit.is_none() && is_owned => tokio::time::sleep(LOOK).await,
            now => return Ok(now),
        }
    }
    container::search(config, &record.id)
}

async fn settle(config: &Config, mut record: Record) -> anyhow::Result<()> {
    if task::status(config, &record).await? != task::Status::Lost {
        return Ok(());
    }
    task::remove(config, &record).await?;
    record.exit = Some(KILLED);
    match record.auto_remove {
        true => rm::forget(&Places::of(config, &record.id)),
        false => record.save(config),
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
                ..record(id, id)
            };
            container::make_dir(&config.root.join(id)).unwrap();
            made.save(&config).unwrap();
        };
        make("killed", false, None);
        make("killed-rm", true, None);
        make("living", true, None);
        make("ended", false, Some(3));
        container::make_dir(&config.root.join("half-made")).unwrap();
        let _living = own(&turn, &config, "living").unwrap();
        sweep(&turn, &config).await.unwrap();
        let mut left: Vec<_> = container::list(&config).unwrap();
        left.sort_by(|a, b| a.id.cmp(&b.id));
        let left: Vec<_> = left.iter().map(|r| (r.id.as_str(), r.exit)).collect();
        assert_eq!(
            left,
            [
                ("ended", Some(3)),
                ("killed", Some(KILLED)),
                ("living", None)
            ]
        );
        assert!(!config.root.join("half-made").exists());
    }
}
