//! What was measured on: a figure without its machine says nothing.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::testbed::Testbed;

/// The machine, the programs on it, and this checkout.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Machine {
    /// UTC, RFC 3339.
    pub date: String,
    /// Of this checkout; with "-dirty" where it differs from the commit, in more than the
    /// figures of earlier runs.
    pub commit: String,
    pub cores: usize,
    pub processor: String,
    pub memory_mib: u64,
    pub kernel: String,
    /// Load averages when the run began: how quiet the machine was.
    pub load: String,
    /// net.core.rmem_max and its like during the run, bytes.
    pub socket_buffers: Option<u64>,
    /// Program and what it calls its version.
    pub versions: BTreeMap<String, String>,
}

/// Prints `NAME<tab>VERSION` lines; a program that is not there has no version.
const VERSIONS: &str = r#"
version() { # NAME COMMAND…
    local name=$1
    shift
    command -v "$1" >/dev/null || return 0
    printf '%s\t%s\n' "$name" "$("$@" 2>&1 | grep -m1 -E '[0-9]+\.[0-9]+')"
}
version iperf3 iperf3 --version
version sockperf sockperf --version
version containerd containerd --version
version runc runc --version
version apptainer apptainer --version
version pasta pasta --version
version slirp4netns slirp4netns --version
printf 'CNI plugins\t%s\n' "$(dpkg-query -W -f '${Version}' containernetworking-plugins)"
"#;

impl Machine {
    /// `host` is a testbed's host, whose programs take part.
    pub fn describe(testbed: &Testbed, host: &str) -> Result<Self> {
        let versions = testbed.on("root", host, VERSIONS).success()?;
        Ok(Self {
            date: run("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"])?,
            commit: commit()?,
            cores: std::thread::available_parallelism()
                .context("counting the cores")?
                .get(),
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|_| "unknown".into()),
            memory_mib: memory_mib(&field("/proc/meminfo", "MemTotal")?)?,
            kernel: read("/proc/sys/kernel/osrelease")?,
            load: read("/proc/loadavg")?,
            socket_buffers: None,
            versions: parse_versions(&versions),
        })
    }

    /// A line or two for people.
    pub fn in_words(&self) -> String {
        let programs: Vec<_> = self.versions.values().map(String::as_str).collect();
        format!(
            "{}, commit {}; {} cores of {}, {} MiB, Linux {}; load at the start {}\n{}",
            self.date,
            self.commit,
            self.cores,
            self.processor,
            self.memory_mib,
            self.kernel,
            self.load,
            programs.join("; ")
        )
    }
}

fn commit() -> Result<String> {
    let commit = run("git", &["rev-parse", "--short=12", "HEAD"])?;
    let changed = run(
        "git",
        &[
            "status",
            "--porcelain",
            "--",
            ":/",
            ":(top,exclude)docs/bench",
        ],
    )?;
    Ok(if changed.is_empty() {
        commit
    } else {
        format!("{commit}-dirty")
    })
}

fn read(path: &str) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    Ok(text.trim().to_owned())
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("running {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The first `KEY : VALUE` line's value. Processors of some kinds have no model name.
fn field(path: &str, key: &str) -> Result<String> {
    let text = read(path)?;
    find_field(&text, key).with_context(|| format!("{path} has no {key}"))
}

fn find_field(text: &str, key: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().to_owned())
}

fn memory_mib(total: &str) -> Result<u64> {
    let kib: u64 = total
        .trim_end_matches(" kB")
        .parse()
        .with_context(|| format!("MemTotal {total:?}"))?;
    Ok(kib / 1024)
}

fn parse_versions(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, version)| {
            let version = version.trim();
            let text = if version.to_lowercase().contains(&name.to_lowercase()) {
                version.to_owned()
            } else {
                format!("{name} {version}")
            };
            (name.to_owned(), text)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotalX: 1 kB\nMemTotal:  2097152 kB\nMemTotal: 3 kB";
        assert_eq!(find_field(text, "MemTotal").unwrap(), "2097152 kB");
        assert_eq!(memory_mib("2097152 kB").unwrap(), 2048);
        assert!(memory_mib("much").is_err());
        assert_eq!(find_field(text, "Mem"), None);
    }

    #[test]
    fn versions_say_what_of() {
        let versions = parse_versions("iperf3\tiperf 3.20\nrunc\trunc version 1.3.3\nrubbish\n");
        assert_eq!(versions["iperf3"], "iperf3 iperf 3.20");
        assert_eq!(versions["runc"], "runc version 1.3.3");
        assert_eq!(versions.len(), 2);
    }
}
