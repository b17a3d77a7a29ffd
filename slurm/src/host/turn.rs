//! One start of an instance at a time for a user on a host: Apptainer's failed start of a name
//! that another start takes at that moment removes the other's record.
//!
//! A lock of a file in `~/.hpk`, where no other user gets: it goes with its holder, and is a host's
//! own, so that a file system whose locks other hosts don't see will do.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::files;

const LIMIT: Duration = Duration::from_secs(20);

/// The turn, until it is dropped.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code)] Option<File>);

impl Turn {
    /// Waits for the turn, but not for ever: without it the start goes on with a warning, since
    /// the clash that it prevents is rare.
    pub fn take(lock: &Path) -> Self {
        match lock_within(lock, LIMIT) {
            Ok(file) => Self(Some(file)),
            Err(error) => {
                eprintln!(
                    "hpk: {error:#}: if another cluster of yours starts on this host right now, \
                     `apptainer instance list` may lose one of the two"
                );
                Self(None)
            }
        }
    }
}

fn lock_within(path: &Path, limit: Duration) -> Result<File> {
    let what = || format!("locking {}", path.display());
    if let Some(folder) = path.parent() {
        files::make_private_dir(folder)?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(what)?;
    let end = Instant::now() + limit;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                // The kernel can wait for a lock, but not for so long and no longer.
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                bail!("{}: held for {} s", what(), limit.as_secs())
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_one_at_a_time_and_goes_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("hosts/n1.lock");
        let held = lock_within(&lock, Duration::ZERO).unwrap();
        let error = lock_within(&lock, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("n1.lock"), "{error}");
        drop(held);
        // A program that another test starts just now has the descriptor too, until its exec.
        lock_within(&lock, Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn without_a_lock_the_start_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("hosts");
        std::fs::create_dir(&lock).unwrap();
        assert!(Turn::take(&lock).0.is_none());
    }
}
