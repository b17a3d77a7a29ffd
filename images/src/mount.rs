//! Images mounted read-only, once per node, by a squashfuse process that outlives whoever started it.
//!
//! The process puts itself into a session of its own when the mount stands, so neither the kubelet's end nor its terminal's
//! takes it along; it ends by itself when its mount is gone. What counts as mounted is what /proc/self/mountinfo says,
//! so a restarted caller adopts what it finds. A mount whose process died (ENOTCONN) is replaced.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hpk_userns::Mapped;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use sha2::{Digest as _, Sha256};

use crate::Image;
use crate::layer::hex;
use crate::manifest::digest_hex;
use crate::sif::Squashfs;

/// Longest time a squashfuse may take to mount (over a slow shared file system).
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// Where squashfuse is looked for beside PATH: Apptainer brings its own.
const MORE_PLACES: &[&str] = &["/usr/libexec/apptainer/bin", "/usr/lib/apptainer/bin"];

/// Mounts images below one folder.
#[derive(Debug, Clone)]
pub struct Mounter {
    root: PathBuf,
}

/// Why an image could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither squashfuse_ll nor squashfuse.
    #[error("neither squashfuse_ll nor squashfuse found on PATH or in {}", MORE_PLACES.join(", "))]
    NoSquashfuse,
    /// It can't be started.
    #[error("starting {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("{program} could not mount {sqfs}: {reason}")]
    Refused {
        /// The program.
        program: PathBuf,
        /// The image.
        sqfs: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The image named has no sha256 digest.
    #[error(transparent)]
    Digest(#[from] crate::manifest::Error),
    /// A folder, lock or mount.
    #[error("{action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// This process's ids.
    #[error(transparent)]
    Ids(#[from] hpk_userns::inside::Unreadable),
    /// A task of ours ended too early.
    #[error("a task was cut off: {0}")]
    Interrupted(String),
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    Error::Io {
        action,
        path,
        source,
    }
}

impl Mounter {
    /// `root` is node-local, normally `/run/hpk/images`; made (0700) where needed.
    pub fn new(root: impl AsRef<Path>) -> Self {
        Self {
            root: root.as_ref().to_owned(),
        }
    }

    /// The folder where `image` is mounted, mounting it first if it isn't. Idempotent, and good across processes.
    pub async fn ensure(&self, image: &Image) -> Result<PathBuf, Error> {
        self.ensure_at(&image.digest, &image.sqfs, 0).await
    }

    /// The same for the root file system in a SIF, where it lies. It is known by the file's identity, not by its content.
    pub async fn ensure_sif(&self, sif: &Squashfs) -> Result<PathBuf, Error> {
        use std::os::unix::fs::MetadataExt as _;
        let file = fs::metadata(&sif.path).map_err(|e| io_error("looking at", &sif.path, e))?;
        let mut hash = Sha256::new();
        for number in [file.dev(), file.ino(), file.size(), sif.offset] {
            hash.update(number.to_le_bytes());
        }
        hash.update(file.mtime().to_le_bytes());
        hash.update(file.mtime_nsec().to_le_bytes());
        let key = format!("sha256:{}", hex(&hash.finalize()));
        self.ensure_at(&key, &sif.path, sif.offset).await
    }

    async fn ensure_at(&self, digest: &str, file: &Path, offset: u64) -> Result<PathBuf, Error> {
        let (target, lock) = self.paths(digest)?;
        let _lock = self.lock(lock).await?;
        match state(&target)? {
            State::Mounted => return Ok(target),
            State::Dead => {
                tracing::warn!(image = digest, "the image's squashfuse died; mounting anew");
                unmount(&target)?;
            }
            State::Unmounted => {}
        }
        make_dir(&target)?;
        start(file, offset, &target).await?;
        match state(&target)? {
            State::Mounted => Ok(target),
            State::Dead | State::Unmounted => Err(Error::Refused {
                program: "squashfuse".into(),
                sqfs: file.to_owned(),
                reason: "it ended without an error and without a mount".to_owned(),
            }),
        }
    }

    /// Unmounts the image `digest`; one that isn't mounted is no error. Overlays that stand on it keep working until
    /// they are unmounted themselves.
    pub async fn release(&self, digest: &str) -> Result<(), Error> {
        let (target, lock) = self.paths(digest)?;
        if !self.root.exists() {
            return Ok(());
        }
        let _lock = self.lock(lock.clone()).await?;
        if !matches!(state(&target)?, State::Unmounted) {
            unmount(&target)?;
        }
        for gone in [fs::remove_dir(&target), fs::remove_file(&lock)] {
            match gone {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("removing", &target, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Digests of the images mounted now.
    pub async fn mounted(&self) -> Result<Vec<String>, Error> {
        let mounts = read_mounts()?;
        let below = mounts
            .iter()
            .filter_map(|m| m.strip_prefix(&self.root).ok());
        let digest = |name: &Path| {
            Some(format!(
                "sha256:{}",
                name.to_str()?.strip_prefix("sha256-")?
            ))
        };
        Ok(below.filter_map(digest).collect())
    }

    fn paths(&self, digest: &str) -> Result<(PathBuf, PathBuf), Error> {
        let hex = digest_hex(digest)?;
        let at = |suffix: &str| self.root.join(format!("sha256-{hex}{suffix}"));
        Ok((at(""), at(".lock")))
    }

    /// One process at a time handles one image; flock is good here, on a node-local file system.
    async fn lock(&self, path: PathBuf) -> Result<Flock<File>, Error> {
        make_dir(&self.root)?;
        let locked = tokio::task::spawn_blocking(move || {
            loop {
                let mut options = OpenOptions::new();
                let file = options
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600)
                    .open(&path);
                let file = file.map_err(|e| io_error("opening", &path, e))?;
                let lock = Flock::lock(file, FlockArg::LockExclusive);
                let lock = lock.map_err(|(_, e)| io_error("locking", &path, e.into()))?;
                // `release` removes the file; then the lock we waited for is nobody's, and another may have made a new one.
                let is_same = |ours: &fs::Metadata, there: &fs::Metadata| {
                    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
                };
                match (lock.metadata(), fs::metadata(&path)) {
                    (Ok(ours), Ok(there)) if is_same(&ours, &there) => return Ok(lock),
                    (Err(e), _) => return Err(io_error("looking at", &path, e)),
                    (_, Err(e)) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(io_error("looking at", &path, e));
                    }
                    _ => {}
                }
            }
        });
        locked
            .await
            .unwrap_or_else(|e| Err(Error::Interrupted(e.to_string())))
    }
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(|e| io_error("making", dir, e))
}

enum State {
    Mounted,
    Dead,
    Unmounted,
}

fn state(target: &Path) -> Result<State, Error> {
    if !read_mounts()?.iter().any(|m| m == target) {
        return Ok(State::Unmounted);
    }
    match fs::metadata(target) {
        Ok(_) => Ok(State::Mounted),
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => Ok(State::Dead),
        Err(e) => Err(io_error("looking at", target, e)),
    }
}

fn read_mounts() -> Result<Vec<PathBuf>, Error> {
    let path = Path::new("/proc/self/mountinfo");
    let bytes = fs::read(path).map_err(|e| io_error("reading", path, e))?;
    Ok(parse_mounts(&bytes))
}

/// Mount points of FUSE file systems, by proc_pid_mountinfo(5).
fn parse_mounts(mountinfo: &[u8]) -> Vec<PathBuf> {
    let lines = mountinfo.split(|b| *b == b'\n');
    let point = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b' ');
        let point = unescape(fields.nth(4)?);
        let kind = fields.skip_while(|f| *f != b"-").nth(1)?;
        kind.starts_with(b"fuse")
            .then(|| PathBuf::from(OsString::from_vec(point)))
    };
    lines.filter_map(point).collect()
}

/// Space, tab, newline and backslash stand there as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

fn unmount(target: &Path) -> Result<(), Error> {
    match umount2(target, MntFlags::MNT_DETACH) {
        Ok(()) => Ok(()),
        // An ordinary user's mount was made by the setuid helper, and is undone by it.
        Err(nix::errno::Errno::EPERM) => {
            let mut helper = std::process::Command::new("fusermount3");
            let status = helper
                .args(["-u", "-z"])
                .arg(target)
                .stderr(Stdio::null())
                .status();
            match status {
                Ok(status) if status.success() => Ok(()),
                _ => Err(io_error(
                    "unmounting",
                    target,
                    io::ErrorKind::PermissionDenied.into(),
                )),
            }
        }
        Err(e) => Err(io_error("unmounting", target, e.into())),
    }
}

/// Starts squashfuse and waits until it stands: without `-f` the process started ends when the mount is there, and another
/// goes on in the background.
async fn start(sqfs: &Path, offset: u64, target: &Path) -> Result<(), Error> {
    let program =
        find_squashfuse(std::env::var_os("PATH").as_deref()).ok_or(Error::NoSquashfuse)?;
    let mut command = tokio::process::Command::new(&program);
    let mapped = Mapped::here()?;
    let mut options = options(nix::unistd::geteuid().is_root(), &mapped).to_owned();
    if offset > 0 {
        options.push_str(&format!(",offset={offset}"));
    }
    command.arg("-o").arg(options).arg(sqfs).arg(target);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.current_dir("/").process_group(0).kill_on_drop(true);
    let child = command.spawn().map_err(|source| Error::Start {
        program: program.clone(),
        source,
    })?;
    let refused = |reason: String| Error::Refused {
        program: program.clone(),
        sqfs: sqfs.to_owned(),
        reason,
    };
    let output = tokio::time::timeout(MOUNT_TIMEOUT, child.wait_with_output()).await;
    let output =
        output.map_err(|_| refused(format!("no mount after {} s", MOUNT_TIMEOUT.as_secs())))?;
    let output = output.map_err(|source| Error::Start {
        program: program.clone(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(refused(match words.is_empty() {
        true => output.status.to_string(),
        false => words,
    }))
}

/// As root, other users of the container are let in; overlayfs checks their permissions. (Only root may say so without
/// user_allow_other in /etc/fuse.conf.) Where root is the only user, all files are its own: one of a user that isn't
/// mapped could be neither written nor removed, not even through an overlay.
fn options(is_root: bool, mapped: &Mapped) -> &'static str {
    match is_root {
        true if mapped.is_single() => "ro,nosuid,nodev,allow_other,uid=0,gid=0",
        true => "ro,nosuid,nodev,allow_other",
        false => "ro,nosuid,nodev",
    }
}

/// squashfuse_ll before squashfuse (it is the faster one), along `path`, then where Apptainer keeps its own.
fn find_squashfuse(path: Option<&OsStr>) -> Option<PathBuf> {
    let path = path.unwrap_or_default().as_bytes().split(|b| *b == b':');
    let along: Vec<PathBuf> = path
        .filter(|p| !p.is_empty())
        .map(|p| PathBuf::from(OsStr::from_bytes(p)))
        .chain(MORE_PLACES.iter().map(PathBuf::from))
        .collect();
    let named = |name: &str| along.iter().map(|dir| dir.join(name)).find(|p| p.is_file());
    named("squashfuse_ll").or_else(|| named("squashfuse"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fuse_mounts_count_and_names_are_unescaped() {
        let text = b"36 35 98:0 / /a rw - ext3 /dev/root rw\n\
            37 35 0:50 / /run/x\\040y rw,relatime shared:1 master:2 - fuse.squashfuse_ll squashfuse_ll ro\n\
            38 35 0:51 / /z rw - fuse x rw\nbroken\n";
        assert_eq!(
            parse_mounts(text),
            [PathBuf::from("/run/x y"), PathBuf::from("/z")]
        );
    }

    #[test]
    fn where_root_is_the_only_user_all_files_are_its_own() {
        assert!(options(true, &Mapped::root_only()).ends_with(",uid=0,gid=0"));
        assert!(!options(true, &Mapped::all()).contains("uid="));
        assert!(!options(false, &Mapped::all()).contains("allow_other"));
    }

    #[test]
    fn the_low_level_squashfuse_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("squashfuse"), "").unwrap();
        let found = || find_squashfuse(Some(dir.path().as_os_str())).unwrap();
        if !found().ends_with("squashfuse_ll") {
            assert_eq!(found(), dir.path().join("squashfuse"));
        }
        fs::write(dir.path().join("squashfuse_ll"), "").unwrap();
        assert_eq!(found(), dir.path().join("squashfuse_ll"));
    }

    #[tokio::test]
    async fn releasing_what_is_not_mounted_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let mounter = Mounter::new(dir.path().join("images"));
        let digest = format!("sha256:{}", "a".repeat(64));
        mounter.release(&digest).await.unwrap();
        fs::create_dir(dir.path().join("images")).unwrap();
        mounter.release(&digest).await.unwrap();
        assert_eq!(mounter.mounted().await.unwrap(), Vec::<String>::new());
        assert!(mounter.release("sha256:../x").await.is_err());
    }
    /// Whether `work` ends without its lock being let go.
    async fn ends(work: &mut tokio::task::JoinHandle<Flock<File>>) -> bool {
        let soon = Duration::from_millis(200);
        tokio::time::timeout(soon, work).await.is_ok()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lock_whose_file_was_made_anew_is_waited_for_there() {
        let dir = tempfile::tempdir().unwrap();
        let (root, path) = (dir.path().to_owned(), dir.path().join("x.lock"));
        let lock = async |path| Mounter::new(&root).lock(path).await.unwrap();
        let first = lock(path.clone()).await;
        let (waiting_root, waiting_path) = (root.clone(), path.clone());
        let mut waiting =
            tokio::spawn(
                async move { Mounter::new(waiting_root).lock(waiting_path).await.unwrap() },
            );
        assert!(!ends(&mut waiting).await);
        // As `release` does it; and then another comes.
        fs::remove_file(&path).unwrap();
        let second = lock(path.clone()).await;
        drop(first);
        assert!(!ends(&mut waiting).await, "two hold it");
        drop(second);
        let third = waiting.await.unwrap();
        assert_eq!(
            third.metadata().unwrap().ino(),
            fs::metadata(&path).unwrap().ino()
        );
    }
}
