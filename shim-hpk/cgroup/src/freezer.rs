//! Pause and Resume.

use std::{path::Path, time::Duration};

use super::{Cgroup, Error, Version};

/// A process in an uninterruptible call freezes once that is through.
const LIMIT: Duration = Duration::from_secs(10);
/// v1 has nothing that tells, and its FROZEN may have to be asked for again.
const POLL: Duration = Duration::from_millis(1);

impl Cgroup {
    fn freezer(&self) -> Option<(Version, &Path)> {
        let controller = match self.version()? {
            Version::V1 => "freezer",
            Version::V2 => "cgroup",
        };
        Some((self.version()?, self.of(controller)?))
    }

    /// Freezes all its processes, and waits until they are.
    ///
    /// # Errors
    /// [`Error::NotFrozen`] if one can't be frozen; all run again then.
    pub async fn freeze(&self) -> Result<(), Error> {
        let (version, directory) = self.freezer().ok_or(Error::NoFreezer)?;
        let waited = tokio::time::timeout(LIMIT, async {
            loop {
                set(version, directory, true)?;
                if is_frozen(version, directory)? {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        })
        .await;
        waited.unwrap_or_else(|_| {
            set(version, directory, false)?;
            Err(Error::NotFrozen {
                seconds: LIMIT.as_secs(),
            })
        })
    }

    /// Lets them run again.
    pub fn thaw(&self) -> Result<(), Error> {
        match self.freezer() {
            Some((version, directory)) => set(version, directory, false),
            None => Ok(()),
        }
    }
}

fn set(version: Version, directory: &Path, frozen: bool) -> Result<(), Error> {
    let (file, value) = match (version, frozen) {
        (Version::V1, true) => ("freezer.state", "FROZEN"),
        (Version::V1, false) => ("freezer.state", "THAWED"),
        (Version::V2, true) => ("cgroup.freeze", "1"),
        (Version::V2, false) => ("cgroup.freeze", "0"),
    };
    let path = directory.join(file);
    std::fs::write(&path, value).map_err(|source| Error::File {
        action: "write",
        path,
        source,
    })
}

fn is_frozen(version: Version, directory: &Path) -> Result<bool, Error> {
    let (file, line) = match version {
        Version::V1 => ("freezer.state", "FROZEN"),
        Version::V2 => ("cgroup.events", "frozen 1"),
    };
    let path = directory.join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().any(|l| l == line)),
        Err(source) => Err(Error::File {
            action: "read",
            path,
            source,
        }),
    }
}

/// Thaws a cgroup known by its directories only: a frozen process takes no SIGKILL in v1.
pub fn thaw_all(directories: &[std::path::PathBuf]) {
    for directory in directories {
        for (file, value) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            let path = directory.join(file);
            if path.exists()
                && let Err(e) = std::fs::write(&path, value)
            {
                log::warn!("write {}: {e}", path.display());
            }
        }
    }
}
