//! One benchmark at a time on a machine, and the socket buffers' limits that most sites have.
//!
//! The limits are the machine's, not a network namespace's: set here, in the machine's own
//! namespace, for the time of a run, and put back when it ends.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

/// Bytes; the kernel's own default, which few sites change.
pub const SOCKET_BUFFER: u64 = 212_992;
const NAMES: [&str; 4] = ["rmem_max", "wmem_max", "rmem_default", "wmem_default"];
const LOCK: &str = "/run/lock/hpk-bench.lock";

/// Held while figures are taken: two runs at once would measure each other.
#[derive(Debug)]
pub struct Turn {
    _lock: Flock<File>,
}

impl Turn {
    /// Waits until no other run is under way.
    pub fn wait() -> Result<Self> {
        let file = File::create(LOCK).with_context(|| format!("creating {LOCK}"))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                eprintln!("waiting for another benchmark on this machine to end ({LOCK})");
                Flock::lock(file, FlockArg::LockExclusive)
                    .map_err(|(_, error)| error)
                    .with_context(|| format!("locking {LOCK}"))?
            }
            Err((_, error)) => return Err(error).with_context(|| format!("locking {LOCK}")),
        };
        Ok(Self { _lock: lock })
    }
}

/// The limits as they were, put back when this is dropped.
#[derive(Debug)]
pub struct SocketBuffers {
    before: Vec<(PathBuf, String)>,
}

impl SocketBuffers {
    pub fn limit() -> Result<Self> {
        let mut guard = Self { before: Vec::new() };
        for name in NAMES {
            let path = PathBuf::from("/proc/sys/net/core").join(name);
            let value = std::fs::read_to_string(&path)
                .with_context(|| format!("reading {}", path.display()))?;
            std::fs::write(&path, SOCKET_BUFFER.to_string())
                .with_context(|| format!("limiting {} to {SOCKET_BUFFER}", path.display()))?;
            guard.before.push((path, value));
        }
        Ok(guard)
    }
}

impl Drop for SocketBuffers {
    fn drop(&mut self) {
        for (path, value) in &self.before {
            if let Err(error) = std::fs::write(path, value) {
                eprintln!(
                    "putting {} back to {}: {error}",
                    path.display(),
                    value.trim()
                );
            }
        }
    }
}
