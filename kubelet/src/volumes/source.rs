//! Where in a volume a container's mount begins: subPath, which must not lead out of the volume.
//!
//! A path that was checked may be another one by the time the runtime mounts it: a container of the
//! pod can swap a folder and a symlink at any moment (CVE-2017-1002101). So the subPath is opened
//! beneath the volume's root, and what was opened is bound to a place that only the kubelet can
//! change; the runtime is given that place. It is needed only until the container is started.
//!
//! - `SubPath`: the plan, a value
//! - `SubPath::apply`, `SubPath::undo`: the bind, and its end
//! - `open`: the resolution

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use thiserror::Error;

use crate::mounts;

#[derive(Debug, Error)]
pub enum Error {
    #[error("subPath {0:?} leads out of its volume")]
    Escapes(String),
    #[error("can't prepare subPath {sub_path:?} of {volume}")]
    Io {
        sub_path: String,
        volume: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("can't bind subPath {sub_path:?} to {target}")]
    Bind {
        sub_path: String,
        target: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// One mount of a part of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubPath {
    /// The volume's name, for messages.
    pub name: String,
    /// The volume's folder on the node.
    pub volume: PathBuf,
    /// Relative to it; not empty.
    pub sub_path: String,
    /// What the runtime is given; below a folder of the kubelet alone.
    pub target: PathBuf,
}

impl SubPath {
    /// Opens the subPath (made as a folder if absent) and binds it to the target, in place of what
    /// an earlier run may have left there.
    ///
    /// The bind takes submounts along, for a user namespace may not leave out those it was given.
    /// It hears of mounts in the volume and tells of none: undoing it must not undo the volume's.
    pub fn apply(&self) -> Result<(), Error> {
        let source = open(&self.volume, &self.sub_path)?;
        self.bind(&source).map_err(|source| Error::Bind {
            sub_path: self.sub_path.clone(),
            target: self.target.clone(),
            source,
        })
    }

    fn bind(&self, source: &OwnedFd) -> io::Result<()> {
        self.undo()?;
        let magic = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
        if let Some(parent) = self.target.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)?;
        }
        if fs::metadata(&magic)?.is_dir() {
            fs::DirBuilder::new().mode(0o700).create(&self.target)?;
        } else {
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&self.target)?;
        }
        let change = |source: Option<&Path>, flags| {
            mount(source, &self.target, None::<&str>, flags, None::<&str>)
        };
        change(Some(&magic), MsFlags::MS_BIND | MsFlags::MS_REC)?;
        change(None, MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
        Ok(())
    }

    /// Unmounts and removes the target, never with content. One that is gone is fine.
    pub fn undo(&self) -> io::Result<()> {
        // Also what lies below goes with the topmost; several may lie on each other.
        while mounts::is_mount_point(&self.target)? {
            umount2(
                &self.target,
                MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW,
            )?;
        }
        let removed = match fs::symlink_metadata(&self.target) {
            Ok(meta) if meta.is_dir() => fs::remove_dir(&self.target),
            Ok(_) => fs::remove_file(&self.target),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// How often a resolution is tried again that the kernel couldn't vouch for, because something
/// was renamed meanwhile.
const ATTEMPTS: u32 = 128;

/// What `sub_path` names in `volume`, as an `O_PATH` file; missing folders are made with the mode
/// of the volume's. Symlinks are followed as long as they stay in the volume.
fn open(volume: &Path, sub_path: &str) -> Result<OwnedFd, Error> {
    let escapes = || Error::Escapes(sub_path.to_owned());
    let fail = |source: io::Error| Error::Io {
        sub_path: sub_path.to_owned(),
        volume: volume.to_owned(),
        source,
    };
    let refuse = |errno: Errno| match errno {
        Errno::EXDEV => escapes(),
        other => fail(other.into()),
    };
    let mut parts = Vec::new();
    for part in Path::new(sub_path).components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::CurDir => {}
            _ => return Err(escapes()),
        }
    }
    let root: OwnedFd = fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
        .open(volume)
        .map_err(fail)?
        .into();
    let mut reached = PathBuf::from(".");
    let mut here = beneath(&root, &reached, OFlag::O_PATH).map_err(refuse)?;
    for part in parts {
        reached.push(part);
        here = match beneath(&root, &reached, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {
                let mode = fs::metadata(volume).map_err(fail)?.permissions().mode();
                make(&here, Path::new(part), mode & 0o7777).map_err(refuse)?
            }
            other => other.map_err(refuse)?,
        };
    }
    Ok(here)
}

fn beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    for _ in 1..ATTEMPTS {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
    openat2(root, path, how)
}

/// Makes the folder `name` in `parent`; a symlink that has the name by now is an error.
fn make(parent: &OwnedFd, name: &Path, mode: u32) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    match mkdirat(parent, name, Mode::from_bits_truncate(mode)) {
        Ok(()) => {
            // Else the umask would count.
            let made = beneath(parent, name, flags)?;
            fchmod(&made, Mode::from_bits_truncate(mode))?;
        }
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    beneath(parent, name, flags | OFlag::O_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn real(file: &OwnedFd) -> PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("link")
    }

    #[test]
    fn a_sub_path_is_made_when_absent_with_the_volumes_mode() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("mode");
        open(dir.path(), "./a/b").expect("opened");
        for made in ["a", "a/b"] {
            let meta = fs::metadata(dir.path().join(made)).expect("made");
            assert!(meta.is_dir());
            assert_eq!(meta.permissions().mode() & 0o7777, 0o777);
        }
    }

    #[test]
    fn neither_dots_nor_symlinks_lead_out_and_nothing_is_made_there() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (volume, outside) = (dir.path().join("v"), dir.path().join("out"));
        fs::create_dir(&volume).expect("volume");
        fs::create_dir(&outside).expect("outside");
        symlink(&outside, volume.join("absolute")).expect("symlink");
        symlink("../out", volume.join("relative")).expect("symlink");
        symlink("/proc/self/root", volume.join("magic")).expect("symlink");
        for sub_path in [
            "../out",
            "/etc",
            "absolute",
            "absolute/x",
            "relative",
            "relative/x",
            "magic",
        ] {
            let error = open(&volume, sub_path).expect_err("refused");
            assert!(matches!(error, Error::Escapes(_)), "{error:?}");
            let message = format!("subPath {sub_path:?} leads out of its volume");
            assert_eq!(error.to_string(), message);
        }
        assert_eq!(fs::read_dir(&outside).expect("list").count(), 0);
    }

    #[test]
    fn a_dangling_symlink_is_refused_and_its_target_not_made() {
        let dir = tempfile::tempdir().expect("tempdir");
        symlink("nothing", dir.path().join("x")).expect("symlink");
        let error = open(dir.path(), "x").expect_err("refused");
        assert!(error.to_string().contains("subPath \"x\""), "{error}");
        assert!(!dir.path().join("nothing").exists());
    }

    #[test]
    fn symlinks_that_stay_in_the_volume_are_followed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = fs::canonicalize(dir.path()).expect("root");
        fs::create_dir_all(root.join("..1/d")).expect("folders");
        fs::write(root.join("..1/f"), "x").expect("file");
        symlink("..1", root.join("..data")).expect("symlink");
        symlink("..data/f", root.join("f")).expect("symlink");
        symlink("../../f", root.join("..1/d/up")).expect("symlink");
        assert_eq!(real(&open(&root, "f").expect("f")), root.join("..1/f"));
        let up = open(&root, "..data/d/up").expect("up");
        assert_eq!(real(&up), root.join("..1/f"));
        assert_eq!(real(&open(&root, ".").expect("root")), root);
    }

    #[test]
    #[ignore = "needs a mount namespace: run in `unshare -Urm`"]
    fn a_bind_is_replaced_by_the_next_and_leaves_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = fs::canonicalize(dir.path()).expect("root");
        let volume = root.join("v");
        fs::create_dir_all(volume.join("d")).expect("folder");
        fs::write(volume.join("d/in"), "x").expect("file");
        fs::write(volume.join("f"), "file").expect("file");
        let target = root.join("volume-subpaths/v/c/0");
        let plan = |sub_path: &str| SubPath {
            name: "v".to_owned(),
            volume: volume.clone(),
            sub_path: sub_path.to_owned(),
            target: target.clone(),
        };
        plan("d").apply().expect("bound");
        // Swapped afterwards: what was opened stays.
        fs::rename(volume.join("d"), volume.join("e")).expect("rename");
        symlink("/", volume.join("d")).expect("symlink");
        assert!(target.join("in").exists());
        assert!(plan("d").apply().is_err());
        plan("e").apply().expect("bound again");
        assert!(target.join("in").exists());
        plan("f").apply().expect("a file in a folder's place");
        assert_eq!(fs::read_to_string(&target).expect("read"), "file");
        plan("f").undo().expect("undone");
        plan("f").undo().expect("undone again");
        assert!(!target.exists());
        assert!(!mounts::is_mount_point(&target).expect("mounts"));
        assert!(volume.join("e/in").exists() && volume.join("f").exists());
    }
}
