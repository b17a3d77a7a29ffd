//! Who uses which images: the store is shared by all nodes of all of a user's clusters, and none of them may lose what it runs.
//!
//! Protocol: whoever mounts images holds one file `claims/HOLDER`, which lists their digests and is touched at least each
//! [`BEAT`]. One that wasn't for [`EXPIRY`] is a dead holder's, and counts no more. Ages are differences of times that the file
//! server itself has set: no clocks of two machines are compared.
//!
//! An image is claimed first, and then looked for once more; who removes one takes its record away first, and then looks at the
//! claims once more. So either the remover sees the claim, or the claimer sees that the image is gone.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::files::{Files, listed, make_private_dir, read_json, remove};
use super::{Store, blocking, hex_of, load};

/// How often a holder's claims are to be touched.
pub const BEAT: Duration = Duration::from_secs(60);
/// After this long without it a holder is dead.
pub const EXPIRY: Duration = Duration::from_secs(600);

/// What a half-written list of claims is called.
const NEXT: &str = ".next";

/// The images that one holder has claimed.
#[derive(Debug, Clone)]
pub struct Claims {
    files: Files,
    path: PathBuf,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    digests: BTreeSet<String>,
    /// The file lists others: it couldn't be written.
    unwritten: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Listed {
    digests: BTreeSet<String>,
}

impl Store {
    /// The claims of `holder`: a name that no other has (a node of one cluster, one process). Those that an earlier process
    /// of that name left stand.
    pub async fn claims(&self, holder: &str) -> Result<Claims, Error> {
        let dir = self.files.claims();
        let path = dir.join(holder);
        if path.parent() != Some(&dir) || holder.ends_with(NEXT) {
            let refused = io::Error::new(io::ErrorKind::InvalidInput, "no name for a holder");
            return Err(Error::io("claiming as", &path, refused));
        }
        let files = self.files.clone();
        blocking(move || {
            make_private_dir(&dir)?;
            let known: Listed = read_json(&path)?.unwrap_or_default();
            let held = Arc::new(Mutex::new(Held {
                digests: known.digests,
                unwritten: false,
            }));
            Ok(Claims { files, path, held })
        })
        .await
    }
}

/// Gives up all that `holder` has claimed in the store at `root`, though it be dead; one that has claimed nothing is fine.
pub async fn end_of(root: &Path, holder: &str) -> Result<(), Error> {
    let root = root.to_owned();
    let path = Files { root }.claims().join(holder);
    blocking(move || remove(&path)).await
}

impl Claims {
    /// Claims the image `digest`. False if the store has lost it meanwhile: then it is to be pulled again.
    ///
    /// # Errors
    /// If the claim can't be written, e.g. on a full disk: it is held all the same, and each [`beat`](Self::beat) shows the
    /// image's use and tries to write again. [`release`](Self::release) undoes that.
    pub async fn add(&self, digest: &str) -> Result<bool, Error> {
        let (claims, digest) = (self.clone(), digest.to_owned());
        blocking(move || {
            let hex = hex_of(&digest)?;
            claims.change(|held| held.insert(digest.clone()))?;
            if load(&claims.files, &digest)?.is_some() {
                touch(&claims.files.record(&hex))?;
                return Ok(true);
            }
            claims.change(|held| held.remove(&digest))?;
            Ok(false)
        })
        .await
    }

    /// Gives the image up; one that isn't held is no error.
    pub async fn release(&self, digest: &str) -> Result<(), Error> {
        let (claims, digest) = (self.clone(), digest.to_owned());
        blocking(move || claims.change(|held| held.remove(&digest))).await
    }

    /// What is held.
    pub fn held(&self) -> BTreeSet<String> {
        self.lock().digests.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows that the holder lives, and that its images are used until now.
    ///
    /// # Errors
    /// The first of what failed; the rest was done all the same.
    pub async fn beat(&self) -> Result<(), Error> {
        let claims = self.clone();
        blocking(move || {
            // Without this the holder is dead for the others, whatever the records say.
            let mut outcome = claims.show();
            for digest in claims.held() {
                let touched = hex_of(&digest).and_then(|hex| touch(&claims.files.record(&hex)));
                outcome = outcome.and(touched.map(drop));
            }
            outcome
        })
        .await
    }

    /// Touches the list; writes it where another took us for dead and removed it, or where it isn't what is held.
    fn show(&self) -> Result<(), Error> {
        let mut held = self.lock();
        if held.unwritten || !touch(&self.path)? {
            self.write(&mut held)?;
        }
        Ok(())
    }

    /// Gives everything up.
    pub async fn end(self) -> Result<(), Error> {
        blocking(move || remove(&self.path)).await
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<String>) -> bool) -> Result<(), Error> {
        let mut held = self.lock();
        match change(&mut held.digests) || held.unwritten {
            true => self.write(&mut held),
            false => Ok(()),
        }
    }

    fn write(&self, held: &mut Held) -> Result<(), Error> {
        let mut next = self.path.clone().into_os_string();
        next.push(NEXT);
        let next = PathBuf::from(next);
        let digests = held.digests.clone();
        let write = || -> io::Result<()> {
            let mut options = fs::OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&next)?;
            file.write_all(&serde_json::to_vec(&Listed { digests })?)?;
            file.sync_all()?;
            fs::rename(&next, &self.path)
        };
        let written = write();
        held.unwritten = written.is_err();
        written.map_err(|e| Error::io("writing", &self.path, e))
    }
}

/// Sets a file's times to the file server's now; false if there is none.
fn touch(path: &Path) -> Result<bool, Error> {
    let now = TimeSpec::UTIME_NOW;
    let flags = UtimensatFlags::FollowSymlink;
    match utimensat(nix::fcntl::AT_FDCWD, path, &now, &now, flags) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::ENOENT) => Ok(false),
        Err(errno) => Err(Error::io("touching", path, errno.into())),
    }
}

/// What all holders living at `now`, the file server's time, have claimed. Files of dead ones are removed.
pub(super) fn claimed(files: &Files, now: SystemTime) -> Result<BTreeSet<String>, Error> {
    let dir = files.claims();
    make_private_dir(&dir)?;
    let mut all = BTreeSet::new();
    for path in listed(&dir)? {
        let Some(changed) = changed(&path)? else {
            continue;
        };
        if age(now, changed) > EXPIRY {
            remove(&path)?;
        } else if !path.to_string_lossy().ends_with(NEXT)
            && let Some(claims) = read_json::<Listed>(&path)?
        {
            all.extend(claims.digests);
        }
    }
    Ok(all)
}

/// The time that the store's file server has now.
pub(super) fn server_time(files: &Files) -> Result<SystemTime, Error> {
    let temp = files.temp("clock")?;
    let read = |file: File| file.metadata()?.modified();
    read(temp.create()?).map_err(|e| Error::io("asking the time of", &files.root, e))
}

/// When a file was last written or touched; none if there is none.
pub(super) fn changed(path: &Path) -> Result<Option<SystemTime>, Error> {
    match fs::metadata(path).and_then(|metadata| metadata.modified()) {
        Ok(time) => Ok(Some(time)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("looking at", path, e)),
    }
}

/// Nothing for what lies ahead.
pub(super) fn age(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}
