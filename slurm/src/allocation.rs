//! What Slurm granted, as its environment variables say.

use std::collections::HashMap;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cgroups;
use crate::clock::{now, time_left};

/// What one host grants to a bubble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub cpus: u32,
    /// In MiB; None when Slurm doesn't manage memory here: the machine's then.
    pub memory_mib: Option<u64>,
}

/// The batch job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub id: String,
    pub nodes: Vec<String>,
    pub grant: Grant,
    /// Seconds since 1970 when the job began and when its time is over.
    pub began: Option<i64>,
    pub ends: Option<i64>,
}

/// Slurm's name of the cluster that the job runs on.
pub fn slurm_cluster(variables: &Variables) -> Option<String> {
    let name = variables.get("SLURM_CLUSTER_NAME");
    name.filter(|name| !name.is_empty()).cloned()
}

/// The environment as a map, so that reading it can be tested.
pub type Variables = HashMap<String, String>;

pub fn variables() -> Variables {
    std::env::vars().collect()
}

/// A number in a variable; a variable that isn't a number is an error that names it.
fn number<T: std::str::FromStr>(variables: &Variables, name: &str) -> Result<Option<T>> {
    match variables.get(name).map(|text| text.trim()) {
        None | Some("") => Ok(None),
        Some(text) => match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => bail!("{name}={text} is not a number"),
        },
    }
}

impl Grant {
    /// What this process may use: by the variables of a batch script or of a step's task, and no more memory than its
    /// cgroup has.
    pub fn here(variables: &Variables) -> Result<Self> {
        Ok(Self::parse(variables)?.within(cgroups::memory_limit()?))
    }

    /// `limit` in bytes.
    fn within(mut self, limit: Option<u64>) -> Self {
        if let Some(limit) = limit.map(|bytes| bytes >> 20)
            && limit < self.memory_mib()
        {
            self.memory_mib = Some(limit);
        }
        self
    }

    fn parse(variables: &Variables) -> Result<Self> {
        let on_node: Option<u32> = number(variables, "SLURM_CPUS_ON_NODE")?;
        let per_task: Option<u32> = number(variables, "SLURM_CPUS_PER_TASK")?;
        let cpus = on_node.or(per_task).unwrap_or(1).max(1);
        let per_node: Option<u64> = number(variables, "SLURM_MEM_PER_NODE")?;
        let per_cpu: Option<u64> = number(variables, "SLURM_MEM_PER_CPU")?;
        let per_gpu: Option<u64> = number(variables, "SLURM_MEM_PER_GPU")?;
        let gpus: Option<u64> = match per_gpu {
            Some(_) => number(variables, "SLURM_GPUS_ON_NODE")?,
            None => None,
        };
        // Slurm lets one of these be asked for; 0 is all of the machine's.
        let all = [
            per_node,
            per_cpu.map(|mib| mib * u64::from(cpus)),
            per_gpu.zip(gpus).map(|(mib, gpus)| mib * gpus),
        ];
        let memory_mib = all.into_iter().flatten().find(|mib| *mib > 0);
        Ok(Self { cpus, memory_mib })
    }

    /// The memory in MiB, the machine's where Slurm sets no limit.
    pub fn memory_mib(&self) -> u64 {
        self.memory_mib
            .or_else(|| machine_memory_mib(&std::fs::read_to_string("/proc/meminfo").ok()?))
            .unwrap_or(1024)
    }
}

fn machine_memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024)
}

impl Job {
    /// From a batch script's variables; asks scontrol for the hosts' names.
    pub fn current(variables: &Variables) -> Result<Self> {
        let id = variables
            .get("SLURM_JOB_ID")
            .context("SLURM_JOB_ID is not set: submit slurm/hpk.slurm with sbatch")?
            .clone();
        let list = variables
            .get("SLURM_JOB_NODELIST")
            .context("SLURM_JOB_NODELIST is not set")?;
        let names = output("scontrol", &["show", "hostnames", list])?;
        let ends = match number(variables, "SLURM_JOB_END_TIME")? {
            Some(ends) => Some(ends),
            None => ask_end(&id)?,
        };
        Ok(Self {
            nodes: names.split_whitespace().map(str::to_owned).collect(),
            grant: Grant::here(variables)?,
            began: number(variables, "SLURM_JOB_START_TIME")?,
            ends,
            id,
        })
    }

    /// The first line: what Slurm granted.
    pub fn describe(&self, now: i64) -> String {
        let cpus = self.grant.cpus;
        let memory = match self.grant.memory_mib {
            Some(mib) => format!("{:.1} GiB of memory", mib as f64 / 1024.0),
            None => "the machine's memory".into(),
        };
        let hosts = self.nodes.len();
        format!(
            "hpk: job {} has {hosts} host{} ({}), on each {cpus} CPU{} and {memory}, {}",
            self.id,
            if hosts == 1 { "" } else { "s" },
            self.nodes.join(" "),
            if cpus == 1 { "" } else { "s" },
            time_left(self.ends, now),
        )
    }
}

/// Seconds in what squeue says of a job's time left: `[DAYS-][[HOURS:]MINUTES:]SECONDS`. None for
/// words, as UNLIMITED.
fn seconds(text: &str) -> Option<i64> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (days.parse().ok()?, rest),
        None => (0, text),
    };
    let numbers: Vec<i64> = rest
        .split(':')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    if numbers.len() > 3 {
        return None;
    }
    let of_day = numbers.iter().fold(0, |sum, number| sum * 60 + number);
    Some(days * 86_400 + of_day)
}

/// When the job's time is over, where Slurm doesn't say so in the environment (before 23.02).
fn ask_end(id: &str) -> Result<Option<i64>> {
    let left = output("squeue", &["--noheader", "--format=%L", "--jobs", id])?;
    Ok(seconds(left.trim()).map(|left| now() + left))
}

/// What a program of Slurm's says.
pub fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("the answer of {program} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn memory_per_cpu_counts_for_each_cpu() {
        let grant = Grant::parse(&variables(&[
            ("SLURM_CPUS_ON_NODE", "2"),
            ("SLURM_MEM_PER_CPU", "2048"),
        ]))
        .unwrap();
        assert_eq!((grant.cpus, grant.memory_mib), (2, Some(4096)));
    }

    #[test]
    fn memory_per_gpu_counts_for_each_gpu() {
        let grant = |pairs| Grant::parse(&variables(pairs)).unwrap().memory_mib;
        let asked = [("SLURM_MEM_PER_GPU", "16384"), ("SLURM_GPUS_ON_NODE", "2")];
        assert_eq!(grant(&asked), Some(32768));
        assert_eq!(grant(&asked[..1]), None);
    }

    #[test]
    fn no_more_memory_is_granted_than_the_cgroup_has() {
        let grant = |memory_mib| Grant {
            cpus: 1,
            memory_mib,
        };
        let (granted, gib) = (grant(Some(4096)), 1 << 30);
        assert_eq!(granted.within(None), granted);
        assert_eq!(granted.within(Some(8 * gib)), granted);
        assert_eq!(granted.within(Some(gib)), grant(Some(1024)));
        // No machine has so much.
        assert_eq!(grant(None).within(Some(1 << 62)), grant(None));
    }

    #[test]
    fn memory_zero_means_the_whole_machine() {
        let grant = Grant::parse(&variables(&[("SLURM_MEM_PER_NODE", "0")])).unwrap();
        assert_eq!((grant.cpus, grant.memory_mib), (1, None));
    }

    #[test]
    fn a_variable_that_is_no_number_is_named() {
        let error = Grant::parse(&variables(&[("SLURM_CPUS_ON_NODE", "two")])).unwrap_err();
        assert!(error.to_string().contains("SLURM_CPUS_ON_NODE=two"));
    }

    #[test]
    fn the_machines_memory_is_read_in_mib() {
        assert_eq!(
            machine_memory_mib("MemTotal:  2048 kB\nMemFree: 1 kB\n"),
            Some(2)
        );
    }

    #[test]
    fn the_first_line_says_cpus_memory_and_time() {
        let job = Job {
            id: "7".into(),
            nodes: vec!["a".into(), "b".into()],
            grant: Grant {
                cpus: 2,
                memory_mib: Some(3072),
            },
            began: Some(0),
            ends: Some(1_795_265_700),
        };
        assert_eq!(
            job.describe(1_795_265_700 - 3600),
            "hpk: job 7 has 2 hosts (a b), on each 2 CPUs and 3.0 GiB of memory, \
             for 60 min, until 2026-11-21 12:55 UTC"
        );
    }

    #[test]
    fn squeues_time_left_is_read_in_all_its_lengths() {
        assert_eq!(seconds("59"), Some(59));
        assert_eq!(seconds("9:05"), Some(545));
        assert_eq!(seconds("1:00:01"), Some(3601));
        assert_eq!(seconds("2-01:00:00"), Some(2 * 86_400 + 3600));
        assert_eq!(seconds("UNLIMITED"), None);
        assert_eq!(seconds("1:2:3:4"), None);
    }
}
