//! What /proc tells of a container's processes.

use std::{os::unix::fs::MetadataExt, time::Duration};

/// Resource use of a set of processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu: Duration,
    pub user: Duration,
    pub resident_bytes: u64,
    pub processes: u64,
    pub threads: u64,
}

/// The fields of /proc/PID/stat used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    user_ticks: u64,
    system_ticks: u64,
    threads: u64,
    started: u64,
    resident_pages: u64,
}

/// Parses /proc/PID/stat; the command's name, in parentheses, may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Field 3 of proc(5) is fields[0].
    let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    // With its waited-for children's (16, 17): what has ended still used its time.
    Some(Stat {
        user_ticks: number(14)? + number(16)?,
        system_ticks: number(15)? + number(17)?,
        threads: number(20)?,
        started: number(22)?,
        resident_pages: number(24)?,
    })
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// When a process started, in clock ticks since boot; `None` if there is none.
pub fn start_time(pid: i32) -> Option<u64> {
    stat(pid).map(|s| s.started)
}

fn namespace(pid: i32, name: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/{name}"))
        .ok()
        .map(|m| m.ino())
}

/// What tells a container's processes from others: its PID namespace, or where it shares that, its
/// mount namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    namespace: &'static str,
    inode: u64,
    own_pid_namespace: bool,
}

impl Membership {
    /// Of the container whose first process is `init`.
    pub fn of(init: i32, own_pid_namespace: bool) -> Option<Self> {
        let name = if own_pid_namespace { "pid" } else { "mnt" };
        Some(Self {
            namespace: name,
            inode: namespace(init, name)?,
            own_pid_namespace,
        })
    }

    /// Whether the kernel ends all of them with the first one.
    pub fn ends_with_init(&self) -> bool {
        self.own_pid_namespace
    }

    fn has(&self, pid: i32) -> bool {
        namespace(pid, self.namespace) == Some(self.inode)
    }

    /// The container's processes, by pid in the shim's namespace, whoever their parents are: looks
    /// at every process there is.
    pub fn pids(&self) -> Vec<i32> {
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|&pid| self.has(pid))
            .collect()
    }

    /// The same for a container of this shim, by following children from the shim down, so that it
    /// costs what the container's processes do. May miss one that is just being orphaned.
    pub fn descendants(&self) -> Vec<i32> {
        // In a shared PID namespace orphans are the sandbox's children.
        let mine = children(std::process::id() as i32).filter(|_| self.own_pid_namespace);
        let Some(mine) = mine else {
            return self.pids();
        };
        let mut found: Vec<i32> = mine.into_iter().filter(|&pid| self.has(pid)).collect();
        let mut next = 0;
        while let Some(&pid) = found.get(next) {
            found.extend(children(pid).unwrap_or_default());
            next += 1;
        }
        found
    }
}

/// A process's children, of all its threads; `None` if it is gone or the kernel doesn't tell.
fn children(pid: i32) -> Option<Vec<i32>> {
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("children")).ok()?;
        all.extend(
            text.split_ascii_whitespace()
                .filter_map(|n| n.parse::<i32>().ok()),
        );
    }
    Some(all)
}

/// Adds up the resource use of `pids`.
pub fn usage(pids: &[i32]) -> Usage {
    let (page, tick) = (
        sysconf(libc::_SC_PAGESIZE, 4096),
        sysconf(libc::_SC_CLK_TCK, 100),
    );
    let time = |ticks: u64| Duration::from_micros(ticks * 1_000_000 / tick);
    pids.iter()
        .filter_map(|&pid| stat(pid))
        .fold(Usage::default(), |sum, s| Usage {
            cpu: sum.cpu + time(s.user_ticks + s.system_ticks),
            user: sum.user + time(s.user_ticks),
            resident_bytes: sum.resident_bytes + s.resident_pages * page,
            processes: sum.processes + 1,
            threads: sum.threads + s.threads,
        })
}

#[allow(unsafe_code)]
fn sysconf(name: libc::c_int, default: u64) -> u64 {
    // SAFETY: integers only.
    u64::try_from(unsafe { libc::sysconf(name) })
        .ok()
        .filter(|&n| n > 0)
        .unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_spaces_and_parentheses_is_skipped() {
        let text =
            "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 7 0 999 1000 55 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.user_ticks, stat.system_ticks), (40, 60));
        assert_eq!(
            (stat.threads, stat.started, stat.resident_pages),
            (7, 999, 55)
        );
    }

    #[test]
    fn this_process_uses_memory() {
        let usage = usage(&[std::process::id() as i32]);
        assert!(usage.resident_bytes > 0);
        assert_eq!(usage.processes, 1);
    }

    #[test]
    fn a_process_that_is_not_there_counts_nothing() {
        assert_eq!(usage(&[i32::MAX]), Usage::default());
        assert_eq!(start_time(i32::MAX), None);
    }
}
