//! What Slurm granted, as its environment variables say.

use std::collections::HashMap;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

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
    /// From the variables of a batch script or of a step's task.
    pub fn parse(variables: &Variables) -> Result<Self> {
        let on_node: Option<u32> = number(variables, "SLURM_CPUS_ON_NODE")?;
        let per_task: Option<u32> = number(variables, "SLURM_CPUS_PER_TASK")?;
        let cpus = on_node.or(per_task).unwrap_or(1).max(1);
        let per_node: Option<u64> = number(variables, "SLURM_MEM_PER_NODE")?;
        let per_cpu: Option<u64> = number(variables, "SLURM_MEM_PER_CPU")?;
        let memory_mib = match (per_node, per_cpu) {
            (Some(mib), _) if mib > 0 => Some(mib),
            (_, Some(mib)) if mib > 0 => Some(mib * u64::from(cpus)),
            _ => None,
        };
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
        Ok(Self {
            nodes: host_names(list)?,
            grant: Grant::parse(variables)?,
            began: number(variables, "SLURM_JOB_START_TIME")?,
            ends: number(variables, "SLURM_JOB_END_TIME")?,
            id,
        })
    }
}

/// The names in a Slurm host list.
fn host_names(list: &str) -> Result<Vec<String>> {
    let output = Command::new("scontrol")
        .args(["show", "hostnames", list])
        .output()
        .context("running scontrol")?;
    if !output.status.success() {
        bail!(
            "scontrol show hostnames {list}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let text = String::from_utf8(output.stdout).context("scontrol's answer is not UTF-8")?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
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
}
