//! What is left of memory, disk, inodes and process ids.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::threshold::{Level, Signal};
use crate::agent::Agent;
use crate::node::observe::available_memory;
use crate::usage::processes;

/// All levels. Memory: what the node offers less what its processes have for themselves, or what the
/// machine has left where that is less.
///
/// # Errors
/// If the disk or the list of processes can't be read.
pub fn levels(agent: &Agent) -> io::Result<Vec<Level>> {
    let args = &agent.config.args;
    let capacity = agent.config.capacity.get("memory");
    let capacity = capacity.map_or(0, |quantity| u64::try_from(quantity.value()).unwrap_or(0));
    let used = processes::figures(Path::new("/proc"))?.working_set;
    let own = capacity.saturating_sub(used);
    let disk = statvfs(&args.root_dir).map_err(io::Error::from)?;
    let unit = disk.fragment_size();
    let mut levels = vec![
        Level {
            signal: Signal::MemoryAvailable,
            available: available_memory().map_or(own, |machine| machine.min(own)),
            capacity,
        },
        Level {
            signal: Signal::NodefsAvailable,
            available: disk.blocks_available() * unit,
            capacity: disk.blocks() * unit,
        },
        Level {
            signal: Signal::NodefsInodesFree,
            available: disk.files_available(),
            capacity: disk.files(),
        },
    ];
    levels.extend(pids());
    Ok(levels)
}

/// Threads of the machine against its limit; nothing where it doesn't say.
fn pids() -> Option<Level> {
    let limit = fs::read_to_string("/proc/sys/kernel/pid_max").ok()?;
    let capacity: u64 = limit.trim().parse().ok()?;
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    Some(Level {
        signal: Signal::PidAvailable,
        available: capacity.saturating_sub(threads(&load)?),
        capacity,
    })
}

/// The second number of the fourth field of proc_loadavg(5).
fn threads(load: &str) -> Option<u64> {
    let (_, all) = load.split(' ').nth(3)?.split_once('/')?;
    all.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_behind_the_slash() {
        assert_eq!(threads("0.20 0.18 0.12 1/80 11206\n"), Some(80));
        assert_eq!(threads("0.20"), None);
    }
}
