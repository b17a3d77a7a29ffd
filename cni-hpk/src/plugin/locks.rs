//! Who may change what: a range of bytes of `<dataDir>/lock` for the bubble's
//! side, and one for each attachment. The kernel gives a lock back when its
//! holder dies, and no file is left of any of them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::error::Error;

/// What is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Bridge, settings, NAT.
    Node,
    /// Network, container id, interface.
    Attachment(&'a str, &'a str, &'a str),
}

impl Scope<'_> {
    /// The byte that stands for it. Two attachments of one byte wait for each
    /// other, and that is all.
    fn offset(self) -> i64 {
        match self {
            Self::Node => 0,
            Self::Attachment(network, container_id, ifname) => {
                let hash = hash(&format!("{network}/{container_id}/{ifname}"));
                i64::try_from(hash >> 2).unwrap_or(i64::MAX - 1) + 1
            }
        }
    }
}

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

/// Waits for the lock.
pub fn lock(data_dir: &Path, scope: Scope<'_>) -> Result<Lock, Error> {
    let path = data_dir.join("lock");
    let attempt = || {
        let file = open(&path, data_dir)?;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&range(scope))) {
                Err(Errno::EINTR) => {}
                other => return other.map(|_| Lock(file)).map_err(Into::into),
            }
        }
    };
    attempt().map_err(|source| failure(&path, source))
}

/// Takes the lock if nobody has it.
pub fn try_lock(data_dir: &Path, scope: Scope<'_>) -> Result<Option<Lock>, Error> {
    let path = data_dir.join("lock");
    let attempt = || {
        let file = open(&path, data_dir)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&range(scope))) {
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            other => other.map(|_| Some(Lock(file))).map_err(Into::into),
        }
    };
    attempt().map_err(|source| failure(&path, source))
}

fn open(path: &PathBuf, data_dir: &Path) -> io::Result<File> {
    let open = || {
        let mut options = File::options();
        options.create(true).read(true).append(true).open(path)
    };
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(data_dir)?;
            open()
        }
        other => other,
    }
}

/// `struct flock` of an exclusive lock, as fcntl(2) wants it for open file
/// descriptions: no process id.
fn range(scope: Scope<'_>) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: scope.offset(),
        l_len: 1,
        l_pid: 0,
    }
}

fn failure(path: &Path, source: io::Error) -> Error {
    Error::File {
        operation: "lock",
        path: path.to_owned(),
        source,
    }
}

/// FNV-1a.
pub fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_attachment_waits() {
        let folder = std::env::temp_dir().join(format!("hpk-locks-{}", std::process::id()));
        let held = lock(&folder, Scope::Attachment("n", "a", "eth0")).unwrap();
        let take = |scope| try_lock(&folder, scope).unwrap().is_some();
        assert!(!take(Scope::Attachment("n", "a", "eth0")));
        assert!(take(Scope::Attachment("n", "a", "eth1")));
        assert!(take(Scope::Node));
        drop(held);
        assert!(take(Scope::Attachment("n", "a", "eth0")));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
