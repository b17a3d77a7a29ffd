//! The local bubble: the network of hpktainer's containers on a host where no bubble of a job runs.
//!
//! It is a user and a network namespace, held by a process of its own (`keeper`), with an uplink; containers come into
//! it through CNI as in any bubble. All who run containers on this host share one.
//!
//! Expected flow: the first container's hpktainer makes `local/RANDOM` and starts the keeper on it; each hpktainer holds a
//! shared lock on its file `users` for as long as its container lives; the keeper waits for the exclusive one, and when
//! it has got it, ends everything and removes the folder.
//!
//! Guarantees: the kernel gives up a lock with its holder, however that ends. So a bubble whose users were killed ends,
//! and one whose keeper was killed (file `alive` is not locked) is passed over by the next start, which removes its folder as
//! soon as nobody uses it. Two that start at once take turns by the lock on `local/start`.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::container::make_dir;
use crate::locks::{lock, open, try_lock};

/// Locked by whoever uses the bubble, shared; by its keeper at the end.
pub const USERS: &str = "users";
/// Locked by the keeper.
pub const ALIVE: &str = "alive";
/// What the keeper says of the bubble; there once it is ready.
pub const STATE: &str = "bubble.json";
/// The keeper's and the uplink's words.
pub const LOG: &str = "log";

/// What is written in [`STATE`].
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// A process in the namespaces.
    pub init: i32,
}

/// A local bubble that lives at least as long as this value.
#[derive(Debug)]
pub struct LocalBubble {
    pub folder: PathBuf,
    pub init: i32,
    _user: Flock<File>,
}

/// The local bubble of `base`; made if there is none. `own`: this program.
pub fn join_or_start(base: &Path, own: &Path) -> anyhow::Result<LocalBubble> {
    let all = base.join("local");
    make_dir(&all)?;
    let _turn = lock(&all.join("start"), FlockArg::LockExclusive)?;
    match find(&all)? {
        Some(bubble) => Ok(bubble),
        None => start(&all, own),
    }
}

/// The local bubble of `base`, if one is there.
pub fn join(base: &Path) -> anyhow::Result<Option<LocalBubble>> {
    let all = base.join("local");
    if !all.exists() {
        return Ok(None);
    }
    let _turn = lock(&all.join("start"), FlockArg::LockExclusive)?;
    find(&all)
}

/// Looks for a living one, and removes the dead that nobody uses. Under the lock of `start`.
fn find(all: &Path) -> anyhow::Result<Option<LocalBubble>> {
    let listing = || format!("looking for local bubbles in {}", all.display());
    let mut living = None;
    for entry in fs::read_dir(all).with_context(listing)? {
        let folder = entry.with_context(listing)?.path();
        if !folder.is_dir() {
            continue;
        }
        let keeper_lives =
            try_lock(&folder.join(ALIVE), FlockArg::LockExclusiveNonblock)?.is_none();
        match keeper_lives {
            true if living.is_none() => {
                // Refused where it is just ending.
                let user = try_lock(&folder.join(USERS), FlockArg::LockSharedNonblock)?;
                if let (Some(user), Some(state)) = (user, read_state(&folder)?) {
                    living = Some(LocalBubble {
                        folder,
                        init: state.init,
                        _user: user,
                    });
                }
            }
            true => {}
            // Containers of a killed keeper's bubble may still run.
            false => {
                if try_lock(&folder.join(USERS), FlockArg::LockExclusiveNonblock)?.is_some() {
                    remove(&folder)?;
                }
            }
        }
    }
    Ok(living)
}

/// Removes a bubble's folder; one that has gone is fine.
pub fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn start(all: &Path, own: &Path) -> anyhow::Result<LocalBubble> {
    let folder = all.join(crate::container::random_id()?);
    make_dir(&folder)?;
    let user = lock(&folder.join(USERS), FlockArg::LockShared)?;
    let log = open(&folder.join(LOG))?;
    let mut command = Command::new(own);
    command.arg(super::keeper::SUBCOMMAND).arg(&folder);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    // A terminal's signals are not for it, and its working folder must not hold up an unmount.
    command.process_group(0).current_dir("/");
    let mut keeper = command.spawn().context("starting a local bubble")?;
    let mut said = String::new();
    if let Some(mut pipe) = keeper.stdout.take() {
        pipe.read_to_string(&mut said)
            .context("waiting for the local bubble")?;
    }
    let state = read_state(&folder)?;
    match (said.trim(), state) {
        (super::keeper::READY, Some(state)) => Ok(LocalBubble {
            folder,
            init: state.init,
            _user: user,
        }),
        _ => {
            keeper
                .wait()
                .context("waiting for the local bubble's end")?;
            let why = fs::read_to_string(folder.join(LOG)).unwrap_or_default();
            remove(&folder)?;
            bail!("a local bubble can't be made: {}", last_words(&why))
        }
    }
}

/// The end of a log, as one line.
fn last_words(log: &str) -> String {
    const LINES: usize = 3;
    let lines: Vec<&str> = log
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    match lines.is_empty() {
        true => "it ended without a word".to_owned(),
        false => lines[lines.len().saturating_sub(LINES)..].join("; "),
    }
}

fn read_state(folder: &Path) -> anyhow::Result<Option<State>> {
    let path = folder.join(STATE);
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("reading {}", path.display()))?,
    };
    let state = serde_json::from_slice(&bytes);
    state
        .map(Some)
        .with_context(|| format!("parsing {}", path.display()))
}

impl LocalBubble {
    /// Where its CNI conf is.
    pub fn conf_dir(&self) -> PathBuf {
        self.folder.join("net.d")
    }

    /// The file of one of its namespaces, held open: `user` or `net`.
    pub fn namespace(&self, kind: &str) -> anyhow::Result<File> {
        let path = format!("/proc/{}/ns/{kind}", self.init);
        File::open(&path).with_context(|| format!("opening {path}, of the local bubble"))
    }

    /// Where each hpktainer pins its network, in its own mounts.
    pub fn network(&self) -> PathBuf {
        self.folder.join("network")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bubble(all: &Path, name: &str) -> PathBuf {
        let folder = all.join(name);
        make_dir(&folder).unwrap();
        fs::write(folder.join(STATE), r#"{"init":7}"#).unwrap();
        folder
    }

    #[test]
    fn a_dead_keepers_bubble_goes_when_nobody_uses_it() {
        let all = tempfile::tempdir().unwrap();
        let (used, unused) = (bubble(all.path(), "a"), bubble(all.path(), "b"));
        let user = lock(&used.join(USERS), FlockArg::LockShared).unwrap();
        assert!(find(all.path()).unwrap().is_none());
        assert!(used.exists() && !unused.exists());
        drop(user);
        assert!(find(all.path()).unwrap().is_none());
        assert!(!used.exists());
    }

    #[test]
    fn a_living_bubble_is_joined_unless_it_ends() {
        let all = tempfile::tempdir().unwrap();
        let folder = bubble(all.path(), "a");
        let _alive = lock(&folder.join(ALIVE), FlockArg::LockExclusive).unwrap();
        let ending = lock(&folder.join(USERS), FlockArg::LockExclusive).unwrap();
        assert!(find(all.path()).unwrap().is_none());
        drop(ending);
        let joined = find(all.path()).unwrap().unwrap();
        assert_eq!((joined.init, joined.folder), (7, folder.clone()));
        assert!(folder.exists());
    }

    #[test]
    fn the_end_of_a_log_is_what_is_told() {
        assert_eq!(last_words("a\nb\n\nc\nd\n"), "b; c; d");
        assert_eq!(last_words("\n"), "it ended without a word");
    }
}
