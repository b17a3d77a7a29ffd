//! The node as a whole: all processes that can be seen. In a bubble, which has a PID namespace of its
//! own, these are the bubble's, while /proc/stat and /proc/meminfo tell of the whole host.
//! Source: proc_pid_stat(5), proc_pid_statm(5).

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use super::Figures;

/// Sums up `proc`. The CPU time never falls: a process's own goes to its parent when it ends.
///
/// # Errors
/// If the list of processes can't be read.
pub fn figures(proc: &Path) -> io::Result<Figures> {
    let ticks = unit(SysconfVar::CLK_TCK, 100);
    let page = unit(SysconfVar::PAGE_SIZE, 4096);
    let mut sum = Figures::default();
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        let is_process = entry.file_name().to_string_lossy().parse::<u32>().is_ok();
        if !is_process {
            continue;
        }
        // One that has ended since counts for its parent.
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
        let (Some(stat), Some(statm)) = (read("stat"), read("statm")) else {
            continue;
        };
        let memory = unshared_pages(&statm).unwrap_or_default() * page;
        sum += Figures {
            cpu: Duration::from_micros(cpu_ticks(&stat).unwrap_or_default() * 1_000_000 / ticks),
            memory,
            working_set: memory,
        };
    }
    Ok(sum)
}

fn unit(name: SysconfVar, otherwise: u64) -> u64 {
    let value = sysconf(name).ok().flatten();
    value
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value > 0)
        .unwrap_or(otherwise)
}

/// utime, stime, cutime and cstime: the fields 14 to 17.
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The second field is a name, which may have spaces and parentheses in it.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let times = fields.get(11..15)?;
    times.iter().map(|time| time.parse::<u64>().ok()).sum()
}

/// Resident less shared: what many processes map counts for none of them.
fn unshared_pages(statm: &str) -> Option<u64> {
    let mut fields = statm.split(' ').skip(1);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let (resident, shared) = (next()?, next()?);
    Some(resident.saturating_sub(shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_counts_with_its_children_that_have_ended() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 10 20 0 0 100 20 3 4 20 0 1 0 50 1 2";
        assert_eq!(cpu_ticks(stat), Some(127));
        assert_eq!(cpu_ticks("7 (a"), None);
    }

    #[test]
    fn what_is_shared_is_nobodys() {
        assert_eq!(unshared_pages("1000 300 100 1 0 200 0\n"), Some(200));
    }

    #[test]
    fn this_process_is_in_the_sum() {
        let all = figures(Path::new("/proc")).expect("readable");
        assert!(all.memory > 0);
    }
}
