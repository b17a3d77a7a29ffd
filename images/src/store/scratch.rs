//! Node-local folders for pulls. Each holds a file its puller has locked (flock is good on a local file system), so that
//! a later process can tell a dead puller's folder and remove it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::error::Error;
use super::files::{listed, make_private_dir};

const PREFIX: &str = "pull-";

/// A folder of our own; removed with all that is in it when dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: tempfile::TempDir,
    _lock: Flock<File>,
}

impl Scratch {
    pub fn make(local_dir: &Path) -> Result<Self, Error> {
        make_own_dir(local_dir)?;
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(local_dir);
        let dir = dir.map_err(|e| Error::io("making a folder in", local_dir, e))?;
        let path = dir.path().join("lock");
        let file = open_lock(&path, true).map_err(|e| Error::io("creating", &path, e))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, e)| Error::io("locking", &path, e.into()))?;
        Ok(Self { dir, _lock: lock })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Makes `dir`, or takes the one that is there if nobody else can put things into it: its name in `/tmp` is known
/// beforehand, and whoever owned it could swap layers between their check and their use.
fn make_own_dir(dir: &Path) -> Result<(), Error> {
    make_private_dir(dir)?;
    let metadata = fs::symlink_metadata(dir).map_err(|e| Error::io("looking at", dir, e))?;
    let ours = metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw();
    if ours && metadata.mode() & 0o002 == 0 {
        return Ok(());
    }
    let why = "it is another user's, a link, or open to all; name another folder in HPK_LOCAL_DIR";
    let refused = io::Error::new(io::ErrorKind::PermissionDenied, why);
    Err(Error::io("using", dir, refused))
}

fn open_lock(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Removes the folders of dead pullers.
pub(super) fn sweep(local_dir: &Path) -> Result<(), Error> {
    make_own_dir(local_dir)?;
    for dir in listed(local_dir)? {
        let ours = dir
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with(PREFIX));
        // Without a lock file the folder is just being made or removed.
        let Some(lock) = ours
            .then(|| open_lock(&dir.join("lock"), false).ok())
            .flatten()
        else {
            continue;
        };
        if let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            fs::remove_dir_all(&dir).map_err(|e| Error::io("removing", &dir, e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_could_swap_things_in_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let own = parent.path().join("own");
        let scratch = Scratch::make(&own).unwrap();
        let mode = scratch.dir.path().metadata().unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert!(Scratch::make(&link).is_err());
        assert!(sweep(&link).is_err());
        fs::set_permissions(&own, Permissions::from_mode(0o777)).unwrap();
        assert!(Scratch::make(&own).is_err());
        assert!(sweep(&own).is_err());
    }

    #[test]
    fn only_dead_pullers_folders_are_swept() {
        let local = tempfile::tempdir().unwrap();
        let living = Scratch::make(local.path()).unwrap();
        let dead = local.path().join("pull-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("lock"), "").unwrap();
        fs::create_dir(local.path().join("other")).unwrap();
        sweep(local.path()).unwrap();
        assert!(
            living.path("lock").exists() && !dead.exists() && local.path().join("other").exists()
        );
        drop(living);
        assert_eq!(fs::read_dir(local.path()).unwrap().count(), 1);
    }
}
