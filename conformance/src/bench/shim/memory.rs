//! What running containers and pods weigh: what their processes have (PSS: of memory that several share, each one's
//! part), and what the machine has less of it, which moves with all else that it does.

use anyhow::{Context as _, Result};

use super::containerd::{Containerd, IMAGE, runtime};
use super::{CONTENDERS, HPK, RUNC};
use crate::bench::memory;
use crate::bench::scenario::{Aim, Better, Bound, Measure, Metric, Pace, Scenario};
use crate::testbed::Testbed;

const CONTAINERS: (usize, usize) = (100, 3);
/// Each a sandbox and one container, in one shim.
const PODS: (usize, usize) = (50, 2);
const POD_MEASURE: &str = "pods-50";
const CONTAINER_MEASURE: &str = "containers-100";
/// Shims group containers by it, runc's too.
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
/// How many are started at once.
const PARALLEL: usize = 4;
const CONTAINER_METRICS: &[Metric] = &[
    megabytes("memory of its processes a container (PSS)"),
    megabytes("memory of the machine a container (MemAvailable)"),
];
const POD_METRICS: &[Metric] = &[
    megabytes("memory of its processes a pod (PSS)"),
    megabytes("memory of the machine a pod (MemAvailable)"),
];

const fn megabytes(name: &'static str) -> Metric {
    Metric {
        name,
        unit: "MB",
        better: Better::Lower,
    }
}

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
        vec![
            Measure {
                word: CONTAINER_MEASURE,
                section: "100 containers on one containerd",
                metrics: CONTAINER_METRICS,
            },
            Measure {
                word: POD_MEASURE,
                section: "50 pods, of a sandbox and a container, on one containerd",
                metrics: POD_METRICS,
            },
        ]
    }

    fn aims(&self) -> Vec<Aim> {
        let aim = |measure, metrics: &[Metric]| Aim {
            measure,
            metric: metrics[0].name,
            contender: HPK,
            against: Some(RUNC),
            bound: Bound::AtMost(1.5),
        };
        vec![
            aim(CONTAINER_MEASURE, CONTAINER_METRICS),
            aim(POD_MEASURE, POD_METRICS),
        ]
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

    fn measure(&mut self, contender: &'static str, measure: &str, pace: Pace) -> Result<Vec<f64>> {
        let run = format!("ctr run -d --runtime {}", runtime(contender));
        let ((full, quick), command) = if measure == POD_MEASURE {
            let of_pod = format!("{run} --annotation {SANDBOX}={contender}-{{}} {IMAGE}");
            let sandbox = format!("{of_pod} {contender}-{{}} sleep 86400");
            let app = format!("{of_pod} {contender}-{{}}-app sleep 86400");
            (PODS, format!("sh -c '{sandbox} && {app}'"))
        } else {
            let command = format!("{run} {IMAGE} {contender}-{{}} sleep 86400");
            (CONTAINERS, command)
        };
        let count = pace.count(full, quick);
        let before = self.used()?;
        let started = self.containerd.time(count, PARALLEL, &command);
        let after = started.and_then(|_| self.used());
        self.containerd.clear()?;
        let after = after?;
        let each = |before: f64, after: f64| (after - before) / count as f64;
        Ok(vec![
            each(before.processes, after.processes),
            each(before.machine, after.machine),
        ])
    }

    fn tear_down(&mut self) -> Result<()> {
        self.running = false;
        self.containerd.end()
    }
}
