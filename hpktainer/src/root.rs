//! A running container's root file system, as this process reaches it.
//!
//! On a host a container's processes have other numbers here than where their shim lives, and its image is
//! mounted where only they see it. The kernel tells which process of ours is which of theirs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail};

/// A process, as /proc/PID/status tells of it.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    parent: u32,
    /// Its numbers, from this PID namespace down to its own.
    numbers: Vec<u32>,
}

/// The root of container `id`, whose first process is `pid` where its shim lives.
pub fn root_of(id: &str, pid: u32) -> anyhow::Result<PathBuf> {
    for candidate in processes()? {
        // One that has ended meanwhile is none.
        let Some(status) = status(candidate) else {
            continue;
        };
        if !status.numbers.contains(&pid) {
            continue;
        }
        if let Some(shim) = shim_above(id, status.parent)
            && status.numbers.get(shim.numbers.len() - 1) == Some(&pid)
        {
            return Ok(PathBuf::from(format!("/proc/{candidate}/root")));
        }
    }
    bail!("no process of the container {id} is to be seen here")
}

/// The nearest ancestor that is the shim of `id`. (A container's parent, unless Apptainer's process was kept.)
fn shim_above(id: &str, mut pid: u32) -> Option<Status> {
    while pid > 1 {
        let status = status(pid)?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        if is_shim_of(id, &line) {
            return Some(status);
        }
        pid = status.parent;
    }
    None
}

/// By its command line: `SHIM … -id ID …`.
fn is_shim_of(id: &str, command_line: &[u8]) -> bool {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    words
        .windows(2)
        .any(|pair| pair[0] == b"-id" && pair[1] == id.as_bytes())
}

fn processes() -> anyhow::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("listing /proc")?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

fn status(pid: u32) -> Option<Status> {
    parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse(text: &str) -> Option<Status> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let numbers: Option<Vec<u32>> = field("NSpid:")?
        .split_whitespace()
        .map(|number| number.parse().ok())
        .collect();
    Some(Status {
        parent: field("PPid:")?.trim().parse().ok()?,
        numbers: numbers.filter(|all| !all.is_empty())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_number_in_each_namespace_it_is_in() {
        let text = "Name:\tsleep\nPid:\t812\nPPid:\t800\nNSpid:\t812\t9\t1\n";
        let wanted = Status {
            parent: 800,
            numbers: vec![812, 9, 1],
        };
        assert_eq!(parse(text), Some(wanted));
        assert_eq!(parse("Name:\tsleep\nPPid:\t800\n"), None);
    }

    #[test]
    fn a_shim_is_known_by_the_id_in_its_command_line() {
        let line =
            b"/hpk/bin/containerd-shim-hpk-v2\0-namespace\0hpktainer\0-id\0abc\0-address\0x\0";
        assert!(is_shim_of("abc", line));
        assert!(!is_shim_of("ab", line));
        assert!(!is_shim_of("x", line));
    }

    #[test]
    fn a_container_that_is_not_there_is_named() {
        let error = root_of("no-such-container", 1).unwrap_err().to_string();
        assert!(error.contains("no-such-container"), "{error}");
    }
}
