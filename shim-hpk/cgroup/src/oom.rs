//! Tells of kills for lack of memory.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::io::{Interest, unix::AsyncFd};

use super::{Cgroup, Version};

/// Watches one cgroup.
#[derive(Debug)]
pub struct Watch {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// An eventfd the kernel adds to, before it kills.
    V1(AsyncFd<OwnedFd>),
    /// The counter `oom_kill` in memory.events, whose changes poll(2) tells of.
    V2 {
        file: AsyncFd<OwnedFd>,
        path: PathBuf,
        seen: AtomicU64,
    },
}

impl Watch {
    /// Of a cgroup with a memory controller; `None` without.
    ///
    /// # Errors
    /// If the kernel refuses to tell.
    pub fn of(cgroup: &Cgroup) -> io::Result<Option<Self>> {
        let (Some(version), Some(directory)) = (cgroup.version(), cgroup.of("memory")) else {
            return Ok(None);
        };
        let source = match version {
            Version::V1 => v1(directory)?,
            Version::V2 => v2(directory)?,
        };
        Ok(Some(Self { source }))
    }

    /// Waits until there may be news: [`Watch::fired`] tells.
    pub async fn changed(&self) -> io::Result<()> {
        let (fd, interest) = match &self.source {
            Source::V1(fd) => (fd, Interest::READABLE),
            Source::V2 { file, .. } => (file, Interest::PRIORITY),
        };
        fd.ready(interest).await?.clear_ready();
        Ok(())
    }

    /// Whether processes were killed since the last call.
    pub fn fired(&self) -> bool {
        match &self.source {
            Source::V1(fd) => {
                let mut count = [0; 8];
                // SAFETY: reads at most 8 bytes into 8; without news it is EAGAIN.
                unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), 8) == 8 }
            }
            Source::V2 { path, seen, .. } => {
                let Ok(kills) = std::fs::read_to_string(path).map(|text| kills_in(&text)) else {
                    return false;
                };
                seen.fetch_max(kills, Ordering::Relaxed) < kills
            }
        }
    }
}

fn v1(directory: &Path) -> io::Result<Source> {
    // SAFETY: integers only.
    let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if event < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it for us.
    let event = unsafe { OwnedFd::from_raw_fd(event) };
    let control = File::open(directory.join("memory.oom_control"))?;
    let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    std::fs::write(directory.join("cgroup.event_control"), line)?;
    // SAFETY: the AsyncFd owns the descriptor: it stays open and the same while it is registered.
    let fd = unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }
        .map_err(io::Error::from)?;
    Ok(Source::V1(fd))
}

fn v2(directory: &Path) -> io::Result<Source> {
    let path = directory.join("memory.events");
    let mut file = File::open(&path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let seen = AtomicU64::new(kills_in(&text));
    // SAFETY: as above.
    let file = unsafe { AsyncFd::register_with_interest(OwnedFd::from(file), Interest::PRIORITY) }
        .map_err(io::Error::from)?;
    Ok(Source::V2 { file, path, seen })
}

fn kills_in(events: &str) -> u64 {
    events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kills_count_not_every_pressure() {
        assert_eq!(kills_in("low 0\nhigh 7\nmax 9\noom 3\noom_kill 2\n"), 2);
        assert_eq!(kills_in(""), 0);
    }
}
