//! What a running container weighs: what the machine has less of it, and what its processes
//! have of their own.

use anyhow::{Context as _, Result};

use super::containerd::{Containerd, IMAGE, runtime};
use super::{CONTENDERS, HPK, RUNC};
use crate::bench::memory;
use crate::bench::scenario::{Aim, Better, Bound, Measure, Metric, Pace, Scenario};
use crate::testbed::Testbed;

const CONTAINERS: (usize, usize) = (100, 3);
/// How many are started at once.
const PARALLEL: usize = 4;
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

    /// PSS is of every process on the host but containerd, whose own memory is no container's.
    fn used(&self) -> Result<Used> {
        let available = memory::available()?;
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
            machine: -available,
            processes: processes * 1024.0 / 1e6,
        })
    }
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
