//! What a running container weighs: what the machine has less of it, and what its processes
//! have of their own.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::containerd::{Containerd, IMAGE, runtime};
use super::{CONTENDERS, HPK, RUNC};
use crate::bench::scenario::{Aim, Better, Bound, Measure, Metric, Pace, Scenario};
use crate::testbed::Testbed;

const CONTAINERS: (usize, usize) = (100, 3);
/// How many are started at once.
const PARALLEL: usize = 4;
/// Memory has settled when so many readings in a row lie within so many KiB, or after so many
/// readings in all: on a machine that others use it never does, and the median of the last ones
/// is as good as can be had.
const READINGS: usize = 5;
const SETTLED_KIB: f64 = 2048.0;
const MOST_READINGS: usize = 60;
const PAUSE: Duration = Duration::from_millis(200);

const METRICS: &[Metric] = &[
    Metric {
        name: "memory of the machine a container (MemAvailable)",
        unit: "MB",
        better: Better::Lower,
    },
    Metric {
        name: "memory of its processes a container (PSS)",
        unit: "MB",
        better: Better::Lower,
    },
];

pub struct Memory {
    containerd: Containerd,
    running: bool,
}

/// What is used at one moment, MB.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Used {
    machine: f64,
    processes: f64,
}

impl Memory {
    pub fn new(testbed: &Testbed) -> Self {
        Self {
            containerd: Containerd::new(testbed),
            running: false,
        }
    }

    /// Reads MemAvailable until it has settled. PSS is of every process on the host but
    /// containerd, whose own memory is no container's.
    fn used(&self) -> Result<Used> {
        let mut readings = Vec::new();
        while !is_settled(&readings) && readings.len() < MOST_READINGS {
            std::thread::sleep(PAUSE);
            let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
            readings.push(available_kib(&text)?);
        }
        let script = "total=0
            for folder in /proc/[0-9]*; do
                if [ \"$(cat $folder/comm 2> /dev/null)\" = containerd ]; then continue; fi
                pss=$(awk '/^Pss:/ { print $2 }' $folder/smaps_rollup 2> /dev/null)
                total=$((total + ${pss:-0}))
            done; echo $total";
        let text = self.containerd.on(script).limit(120).success()?;
        let processes: f64 = text
            .trim()
            .parse()
            .with_context(|| format!("the sum of PSS is {text:?}"))?;
        Ok(Used {
            machine: -settled(&readings).context("no readings")? * 1024.0 / 1e6,
            processes: processes * 1024.0 / 1e6,
        })
    }
}

/// KiB.
fn available_kib(meminfo: &str) -> Result<f64> {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .context("/proc/meminfo has no MemAvailable")
}

fn last(readings: &[f64]) -> Option<&[f64]> {
    readings.get(readings.len().checked_sub(READINGS)?..)
}

fn is_settled(readings: &[f64]) -> bool {
    last(readings).is_some_and(|last| {
        let least = last.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = last.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        greatest - least <= SETTLED_KIB
    })
}

fn settled(readings: &[f64]) -> Option<f64> {
    let mut last = last(readings)?.to_vec();
    last.sort_by(f64::total_cmp);
    Some(last[READINGS / 2])
}

impl Scenario for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn contenders(&self) -> &'static [&'static str] {
        CONTENDERS
    }

    fn measures(&self) -> Vec<Measure> {
        vec![Measure {
            word: "containers-100",
            section: "100 containers on one containerd",
            metrics: METRICS,
        }]
    }

    fn aims(&self) -> Vec<Aim> {
        vec![Aim {
            measure: "containers-100",
            metric: METRICS[0].name,
            contender: HPK,
            against: Some(RUNC),
            bound: Bound::AtMost(1.5),
        }]
    }

    /// One container is run and removed, so that what a runtime does only once is done.
    fn set_up(&mut self, contender: &'static str) -> Result<()> {
        if !self.running {
            self.containerd.start()?;
            self.running = true;
        }
        self.containerd
            .keep(contender, &format!("{contender}-first"))?;
        self.containerd.clear()?;
        Ok(())
    }

    fn measure(&mut self, contender: &'static str, _: &str, pace: Pace) -> Result<Vec<f64>> {
        let count = pace.count(CONTAINERS.0, CONTAINERS.1);
        let before = self.used()?;
        let started = self.containerd.time(
            count,
            PARALLEL,
            &format!(
                "ctr run -d --runtime {} {IMAGE} {contender}-{{}} sleep 86400",
                runtime(contender)
            ),
        );
        let after = started.and_then(|_| self.used());
        self.containerd.clear()?;
        let after = after?;
        let each = |before: f64, after: f64| (after - before) / count as f64;
        Ok(vec![
            each(before.machine, after.machine),
            each(before.processes, after.processes),
        ])
    }

    fn tear_down(&mut self) -> Result<()> {
        self.running = false;
        self.containerd.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_settled_when_the_last_readings_agree() {
        let moving = [9e6, 8e6, 7e6, 6e6, 5e6];
        assert!(!is_settled(&moving));
        let mut readings = moving.to_vec();
        readings.extend([5e6, 5e6 + 1000.0, 5e6, 5e6 + 500.0]);
        assert!(is_settled(&readings));
        assert_eq!(settled(&readings), Some(5e6));
        assert!(!is_settled(&readings[..4]));
    }

    #[test]
    fn available_memory_is_read_by_its_name() {
        let text = "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:    5 kB\n";
        assert_eq!(available_kib(text).unwrap(), 5.0);
        assert!(available_kib("MemTotal: 9 kB\n").is_err());
    }
}
