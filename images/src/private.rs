//! A node-local folder of one user, under a name that nobody else can take beforehand.
//!
//! What lies in `/tmp` under a known name may have been put there by another user. The name here ends in digits made from
//! a secret of the user's home and the host's name: every program of the user finds the same folder, also two that start
//! at once, and nobody else can know it before it is there. Where it is another's all the same (one who saw the name
//! before the folder was cleaned away), the next name is taken.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::layer::hex;

/// Names that are tried.
const NAMES: u32 = 4;
/// Bytes of the secret.
const SECRET: usize = 16;
/// Hex digits in a name: few, since sockets lie below (108 bytes in all), and enough not to be guessed.
const DIGITS: usize = 10;

/// Why there is no folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The secret, or a folder.
    #[error("{operation} {path}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Each name is somebody else's, or open to others.
    #[error("every folder {0}-… that could be used is another user's, a link, or open to others")]
    Taken(PathBuf),
}

fn fail(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        operation,
        path,
        source,
    }
}

/// Where node-local folders are: HPK_LOCAL, TMPDIR or /tmp.
pub fn local_parent() -> PathBuf {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    named("HPK_LOCAL")
        .or_else(|| named("TMPDIR"))
        .map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

/// Makes or finds the folder `hpktainer-UID-…` in `parent`, 0700 and ours. `home` is `~/.hpk`, where the secret lies.
pub fn local_folder(home: &Path, parent: &Path) -> Result<PathBuf, Error> {
    let secret = secret(home)?;
    let host = nix::unistd::gethostname()
        .map_err(io::Error::from)
        .map_err(fail("asking for the name of", Path::new("this host")))?;
    let uid = nix::unistd::geteuid();
    let begin = parent.join(format!("hpktainer-{uid}"));
    for number in 0..NAMES {
        let mut hash = Sha256::new();
        hash.update(&secret);
        hash.update(host.as_encoded_bytes());
        hash.update(parent.as_os_str().as_encoded_bytes());
        hash.update(number.to_be_bytes());
        let digits = hex(&hash.finalize());
        let folder = parent.join(format!("hpktainer-{uid}-{}", &digits[..DIGITS]));
        if is_made_ours(&folder).map_err(fail("making", &folder))? {
            return Ok(folder);
        }
    }
    Err(Error::Taken(begin))
}

/// Whether the folder is there, or made, and only its owner, who is us, can enter it.
fn is_made_ours(folder: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(folder)?;
    let ours = found.uid() == nix::unistd::geteuid().as_raw();
    Ok(ours && found.is_dir() && found.mode() & 0o077 == 0)
}

/// The secret's bytes; made when first asked for, by one of those who ask at once.
fn secret(home: &Path) -> Result<Vec<u8>, Error> {
    let path = home.join("local-secret");
    if let Some(secret) = read(&path)? {
        return Ok(secret);
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(home);
    made.map_err(fail("making", home))?;
    let mut bytes = [0; SECRET];
    let random = Path::new("/dev/urandom");
    fs::File::open(random)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(fail("reading", random))?;
    let temp = home.join(format!("local-secret.{}", hex(&bytes[..4])));
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        // A link, not a rename: the first one stays.
        match fs::hard_link(&temp, &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let written = write();
    // Whether or not it got its name, and before the failure is told.
    let removed = fs::remove_file(&temp);
    written.and(removed).map_err(fail("writing", &path))?;
    let missing = || fail("reading", &path)(io::ErrorKind::NotFound.into());
    read(&path)?.ok_or_else(missing)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(fail("reading", path)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_folder_is_found_again_and_two_homes_have_two() {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let parent = tempfile::tempdir().unwrap();
        let folder = local_folder(home.path(), parent.path()).unwrap();
        assert_eq!(local_folder(home.path(), parent.path()).unwrap(), folder);
        assert_ne!(local_folder(other.path(), parent.path()).unwrap(), folder);
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let names: Vec<_> = fs::read_dir(home.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn a_name_that_another_has_taken_is_left_to_him() {
        let (home, parent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = local_folder(home.path(), parent.path()).unwrap();
        fs::remove_dir(&first).unwrap();
        std::os::unix::fs::symlink("/tmp", &first).unwrap();
        let second = local_folder(home.path(), parent.path()).unwrap();
        assert_ne!(first, second);
        fs::set_permissions(&second, fs::Permissions::from_mode(0o777)).unwrap();
        let third = local_folder(home.path(), parent.path()).unwrap();
        assert!(third != first && third != second);
    }

    #[test]
    fn those_who_ask_at_once_get_one_folder() {
        let (home, parent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let found: std::collections::HashSet<PathBuf> = std::thread::scope(|scope| {
            let ask = || local_folder(home.path(), parent.path()).unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(found.len(), 1);
    }
}
