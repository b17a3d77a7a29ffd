//! A lock on a shared file system that survives a dead holder, without flock.
//!
//! Protocol: the lease is a file that `link` brings into being with its content (atomic on NFS, too; where the file
//! system has no links, `O_EXCL`). The holder rewrites it each [`HEARTBEAT`]. A waiter that saw the same bytes for [`EXPIRY`]
//! *by its own clock* takes the holder for dead (no clocks of two machines are compared), and at once where the holder's
//! process was on this machine and is gone. The dead lease is renamed away, which one waiter achieves; if what was renamed
//! turns out to be another, living one, it is put back.
//!
//! Guarantee: at most one holder, but for pauses longer than [`EXPIRY`]. So the work under a lease must be harmless when done
//! twice; the store's is, since results are named by digest and renamed into place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How often a holder shows that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a holder may be silent.
pub const EXPIRY: Duration = Duration::from_secs(30);

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
    fn this_process() -> Self {
        let read = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let pid = std::process::id();
        Self {
            host: nix::unistd::gethostname()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            pid,
            started: start_time(Path::new("/proc"), pid).unwrap_or_default(),
            place: format!(
                "{} {}",
                read("/proc/sys/kernel/random/boot_id"),
                namespace.display()
            ),
            nonce: nonce(),
            beat: format!("{:012}", 0),
        }
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
pub(crate) fn nonce() -> String {
    let mut bytes = [0; 12];
    let random = File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    match random {
        Ok(()) => crate::layer::hex(&bytes),
        Err(_) => format!("{}-{:?}", std::process::id(), Instant::now())
            .replace([' ', '{', '}', ':', ','], ""),
    }
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
        let holder = Holder::this_process();
        let error = |source| Error {
            action: "taking",
            path: path.to_owned(),
            source,
        };
        let bytes = serde_json::to_vec(&holder).map_err(|e| error(e.into()))?;
        if !create(path, &holder.nonce, &bytes).map_err(error)? {
            return Ok(None);
        }
        Ok(Some(Lease {
            path: path.to_owned(),
            nonce: holder.nonce.clone(),
            heartbeat: tokio::spawn(keep_beating(path.to_owned(), holder)),
        }))
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

async fn keep_beating(path: PathBuf, mut holder: Holder) {
    for beat in 1u64.. {
        tokio::time::sleep(HEARTBEAT).await;
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

/// A waiter's view of a lease.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    me: Holder,
    seen: Option<(Vec<u8>, Instant)>,
}

impl Watch {
    /// Watches the lease at `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            me: Holder::this_process(),
            seen: None,
        }
    }

    /// Looks once: removes the lease if its holder is dead. Gives the living holder; none if there is no lease (any more).
    pub fn look(&mut self) -> Result<Option<Holder>, Error> {
        let Some((bytes, holder)) = read(&self.path)? else {
            return Ok(None);
        };
        let gone = holder
            .as_ref()
            .is_some_and(|h| h.is_gone(&self.me, Path::new("/proc")));
        if self.is_expired(&bytes, Instant::now()) || gone {
            self.remove_dead(&bytes)?;
            return Ok(None);
        }
        Ok(Some(holder.unwrap_or_else(|| Holder {
            host: "an unknown host".to_owned(),
            ..self.me.clone()
        })))
    }

    fn is_expired(&mut self, bytes: &[u8], now: Instant) -> bool {
        match &self.seen {
            Some((seen, since)) if seen == bytes => now.duration_since(*since) >= EXPIRY,
            _ => {
                self.seen = Some((bytes.to_vec(), now));
                false
            }
        }
    }

    fn remove_dead(&self, dead: &[u8]) -> Result<(), Error> {
        let mut away = self.path.as_os_str().to_owned();
        away.push(format!(".dead-{}", nonce()));
        let away = PathBuf::from(away);
        let error = |source| Error {
            action: "removing the dead",
            path: self.path.clone(),
            source,
        };
        match fs::rename(&self.path, &away) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()), // another waiter did
            other => other.map_err(error)?,
        }
        let moved = fs::read(&away).map_err(error)?;
        if moved != dead {
            // It came to life, or is a new holder's. If a third has taken the name meanwhile, that one holds it.
            let _ = fs::hard_link(&away, &self.path);
        }
        fs::remove_file(&away).map_err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_holder_at_a_time_and_none_after_the_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lease");
        let lease = Lease::try_acquire(&path).unwrap().unwrap();
        assert!(Lease::try_acquire(&path).unwrap().is_none());
        assert!(lease.is_ours());
        assert_eq!(
            Watch::new(&path).look().unwrap().unwrap().pid,
            std::process::id()
        );
        drop(lease);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Lease::try_acquire(&path).unwrap().is_some());
    }

    #[tokio::test]
    async fn a_heartbeat_changes_the_bytes_but_not_the_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lease");
        let lease = Lease::try_acquire(&path).unwrap().unwrap();
        let before = fs::read(&path).unwrap();
        let mut holder: Holder = serde_json::from_slice(&before).unwrap();
        holder.beat = format!("{:012}", 77);
        assert!(rewrite(&path, &holder).unwrap());
        let after = fs::read(&path).unwrap();
        assert!(after != before && after.len() == before.len() && lease.is_ours());
        // Not ours any more: left alone.
        holder.nonce = "other".into();
        assert!(!rewrite(&path, &holder).unwrap());
    }

    #[test]
    fn silence_is_measured_by_the_waiters_own_clock() {
        let mut watch = Watch::new(Path::new("/x"));
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        assert!(!watch.is_expired(b"1", at(0)));
        assert!(!watch.is_expired(b"1", at(29)));
        assert!(!watch.is_expired(b"2", at(30)));
        assert!(!watch.is_expired(b"2", at(59)));
        assert!(watch.is_expired(b"2", at(60)));
    }

    #[tokio::test]
    async fn a_holder_that_died_on_this_machine_is_removed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lease");
        let dead = Holder {
            started: 1,
            ..Holder::this_process()
        };
        fs::write(&path, serde_json::to_vec(&dead).unwrap()).unwrap();
        assert_eq!(Watch::new(&path).look().unwrap(), None);
        assert!(Lease::try_acquire(&path).unwrap().is_some());
        // One of another machine is given its time.
        let far = Holder {
            place: "elsewhere".into(),
            ..dead
        };
        fs::write(&path, serde_json::to_vec(&far).unwrap()).unwrap();
        assert_eq!(Watch::new(&path).look().unwrap(), Some(far));
    }

    #[test]
    fn a_lease_that_came_to_life_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lease");
        fs::write(&path, "living").unwrap();
        Watch::new(&path).remove_dead(b"dead").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"living");
        Watch::new(&path).remove_dead(b"living").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
