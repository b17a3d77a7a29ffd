//! Locks on files of a node-local file system, by flock(2): the kernel gives them up with their holder.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The file, made 0600 where there is none; what is written goes to its end.
pub fn open(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path);
    file.with_context(|| format!("opening {}", path.display()))
}

/// The lock, when it is free.
pub fn lock(path: &Path, how: FlockArg) -> anyhow::Result<Flock<File>> {
    let mut file = open(path)?;
    loop {
        match Flock::lock(file, how) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, errno)) => {
                return Err(errno).with_context(|| format!("locking {}", path.display()));
            }
        }
    }
}

/// The lock; none where another has it.
pub fn try_lock(path: &Path, how: FlockArg) -> anyhow::Result<Option<Flock<File>>> {
    match Flock::lock(open(path)?, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).with_context(|| format!("locking {}", path.display())),
    }
}
