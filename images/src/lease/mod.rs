//! A lock on a shared file system that survives a dead holder, and one that hangs, without flock.
//!
//! Protocol: the lease is a file that `link` brings into being with its content (atomic on NFS, too; where the file
//! system has no links, `O_EXCL`). The holder rewrites it each [`HEARTBEAT`], for as long as its work gets on: what has shown
//! no progress ([`Pulse`]) for [`STALL`] hangs, and its lease is beaten no more. A waiter that saw the same bytes for
//! [`EXPIRY`] *by its own clock* takes the holder for dead (no clocks of two machines are compared), and at once where the
//! holder's process was on this machine and is gone. The dead lease is renamed away, which one waiter achieves; if what was
//! renamed turns out to be another, living one, it is put back.
//!
//! Guarantee: at most one holder, but for pauses longer than [`EXPIRY`]; a waiter waits no longer than [`STALL`] and [`EXPIRY`]
//! for a holder that gets nowhere. So the work under a lease must be harmless when done twice; the store's is, since results
//! are named by digest and renamed into place.
//!
//! - `watch`: the waiter's side
//! - `pulse`: what the work shows of itself
//! - here: the holder's side, and the file

mod pulse;
#[cfg(test)]
mod tests;
mod watch;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch::{Receiver, Sender, channel};

pub use pulse::Pulse;
pub use watch::Watch;

/// How often a holder shows that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a holder may be silent.
pub const EXPIRY: Duration = Duration::from_secs(30);
/// How long a holder's work may go without progress. Longer than any one step of a pull is silent: an attempt at a blob
/// for a minute, a login at the next endpoint for two.
pub const STALL: Duration = Duration::from_secs(360);

/// Who holds a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Host name.
    pub host: String,
    /// Process id in its own namespace.
    pub pid: u32,
    /// Start time of the process, clock ticks since boot: tells it from a later one of the same id.
    started: u64,
    /// The machine's boot and the PID namespace: where `pid` means something.
    place: String,
    nonce: String,
    /// Counts up; 12 digits, so that the file keeps its length.
    beat: String,
}

/// A lease held; dropping it releases it.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    nonce: String,
    pulse: Pulse,
    hangs: Receiver<bool>,
    heartbeat: tokio::task::JoinHandle<()>,
}

/// Why a lease could not be handled.
#[derive(Debug, thiserror::Error)]
#[error("{action} lease {path}")]
pub struct Error {
    action: &'static str,
    /// The lease's file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl Holder {
    fn this_process() -> io::Result<Self> {
        let pid = std::process::id();
        let proc = Path::new("/proc");
        let boot = fs::read_to_string(proc.join("sys/kernel/random/boot_id"))?;
        let namespace = fs::read_link(proc.join("self/ns/pid"))?;
        let started = start_time(proc, pid)
            .ok_or_else(|| io::Error::other("/proc doesn't show this process itself"))?;
        Ok(Self {
            host: nix::unistd::gethostname()?.to_string_lossy().into_owned(),
            pid,
            started,
            place: format!("{} {}", boot.trim(), namespace.display()),
            nonce: nonce()?,
            beat: format!("{:012}", 0),
        })
    }

    /// Whether the holder was a process this one could see, and is gone.
    fn is_gone(&self, me: &Holder, proc: &Path) -> bool {
        self.place == me.place && start_time(proc, self.pid) != Some(self.started)
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)
    }
}

/// A name no other has: from the kernel's random numbers.
pub(crate) fn nonce() -> io::Result<String> {
    let mut bytes = [0; 12];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(crate::layer::hex(&bytes))
}

/// Field 22 of proc_pid_stat(5), behind the name, which may hold anything.
fn start_time(proc: &Path, pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

impl Lease {
    /// Takes the lease at `path` if nobody holds it. Must run in a tokio runtime.
    pub fn try_acquire(path: &Path) -> Result<Option<Lease>, Error> {
        let error = |source| Error {
            action: "taking",
            path: path.to_owned(),
            source,
        };
        let holder = Holder::this_process().map_err(error)?;
        let bytes = serde_json::to_vec(&holder).map_err(|e| error(e.into()))?;
        if !create(path, &holder.nonce, &bytes).map_err(error)? {
            return Ok(None);
        }
        let pulse = Pulse::new();
        let (sender, hangs) = channel(false);
        let nonce = holder.nonce.clone();
        let beating = keep_beating(path.to_owned(), holder, pulse.clone(), sender);
        Ok(Some(Lease {
            path: path.to_owned(),
            nonce,
            pulse,
            hangs,
            heartbeat: tokio::spawn(beating),
        }))
    }

    /// By which the work under this lease shows that it gets on.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Resolves when the work has shown no progress for [`STALL`]: the lease is beaten no more, and the work to be given up.
    pub async fn hangs(&self) {
        let mut hangs = self.hangs.clone();
        if hangs.wait_for(|hangs| *hangs).await.is_err() {
            // The heartbeat ended because another holds the lease now; our work is harmless, and may go on.
            std::future::pending().await
        }
    }

    /// Whether the lease is still this one; false after somebody took us for dead.
    pub fn is_ours(&self) -> bool {
        read(&self.path)
            .is_ok_and(|h| h.is_some_and(|(_, h)| h.is_some_and(|h| h.nonce == self.nonce)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.heartbeat.abort();
        if self.is_ours()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a lease can't be removed; it expires by itself");
        }
    }
}

async fn keep_beating(path: PathBuf, mut holder: Holder, pulse: Pulse, hangs: Sender<bool>) {
    for beat in 1u64.. {
        tokio::time::sleep(HEARTBEAT).await;
        if pulse.silence() >= STALL {
            // Nobody listens once the lease was dropped.
            let _ = hangs.send(true);
            return;
        }
        holder.beat = format!("{beat:012}");
        let (path, holder) = (path.clone(), holder.clone());
        match tokio::task::spawn_blocking(move || rewrite(&path, &holder)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return,
            // The next beat may get through.
            Ok(Err(error)) => tracing::warn!(%error, "a lease's heartbeat failed"),
        }
    }
}

/// Writes the new beat into the file if it is still ours.
fn rewrite(path: &Path, holder: &Holder) -> io::Result<bool> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let ours = serde_json::from_slice::<Holder>(&bytes).is_ok_and(|h| h.nonce == holder.nonce);
    if ours {
        file.write_all_at(&serde_json::to_vec(holder)?, 0)?;
        file.sync_data()?;
    }
    Ok(ours)
}

/// Brings the file into being with its content; false if there is one.
fn create(path: &Path, nonce: &str, bytes: &[u8]) -> io::Result<bool> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(format!(".{nonce}"));
    let temp = PathBuf::from(temp);
    let write = |path: &Path| -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    if let Err(e) = write(&temp) {
        // What is there of it, e.g. on a full disk, is of no use.
        let _ = fs::remove_file(&temp);
        return Err(e);
    }
    let linked = match fs::hard_link(&temp, path) {
        Ok(()) => Ok(true),
        // NFS may have linked and lost the answer; the count of names tells.
        Err(_) if fs::metadata(&temp).is_ok_and(|m| m.nlink() == 2) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS | libc::EMLINK)
            ) =>
        {
            match write(path) {
                Ok(()) => Ok(true),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(e) => Err(e),
            }
        }
        Err(e) => Err(e),
    };
    fs::remove_file(&temp)?;
    linked
}

/// The lease's bytes and what they say, if they say something; none if nobody holds it.
type Reading = Option<(Vec<u8>, Option<Holder>)>;

fn read(path: &Path) -> Result<Reading, Error> {
    // Opening anew makes NFS ask the server (close-to-open consistency).
    match fs::read(path) {
        Ok(bytes) => {
            let holder = serde_json::from_slice(&bytes).ok();
            Ok(Some((bytes, holder)))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error {
            action: "reading",
            path: path.to_owned(),
            source,
        }),
    }
}
