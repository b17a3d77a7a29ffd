//! The node's scenario (issue 6): pods of a bubble beside pods of a stock kubelet, containerd and
//! runc, run as root on another host of the testbed, both nodes of the same cluster.
//!
//! Layout: `nodes` – the cluster and its two nodes.

mod nodes;

use anyhow::{Context as _, Result, bail};

use super::memory;
use super::scenario::{Aim, Better, Bound, Measure, Metric, Pace, Scenario};
use super::statistics::percentile;
use crate::testbed::Testbed;
use nodes::Nodes;

/// The contenders; the first is the reference.
const CONTENDERS: &[&str] = &[STOCK, HPK];
const STOCK: &str = "stock";
const HPK: &str = "hpk";

const STARTING: &str = "A pod's start, from the request to the watch's word that it is running";
const STANDING: &str = "Pods that do nothing";
/// Pods of a measure, in a full and in a quick run.
const ALONE: (usize, usize) = (10, 1);
const AT_ONCE: (usize, usize) = (50, 3);
const MANY: (usize, usize) = (100, 3);
/// Seconds of watching pods that do nothing.
const IDLE: (usize, usize) = (30, 2);

const fn metric(name: &'static str, unit: &'static str) -> Metric {
    Metric {
        name,
        unit,
        better: Better::Lower,
    }
}

const START: &[Metric] = &[
    metric("alone, p50", "ms"),
    metric("alone, the slowest", "ms"),
];
const START_50: &[Metric] = &[
    metric("50 at once, p50", "s"),
    metric("50 at once, p99", "s"),
    metric("50 at once, until the last", "s"),
];
const HUNDRED: &[Metric] = &[
    metric("100 at once, until the last", "s"),
    metric("memory of the machine a pod (MemAvailable)", "MB"),
    metric("resident memory of the node's daemons", "MB"),
    metric("CPU of the node's daemons and shims", "% of a core"),
    metric("100 deleted at once, until the last is gone", "s"),
];

pub fn scenarios(testbed: &Testbed) -> Vec<Box<dyn Scenario>> {
    vec![Box::new(Node {
        testbed: testbed.clone(),
        nodes: None,
    })]
}

struct Node {
    testbed: Testbed,
    nodes: Option<Nodes>,
}

fn aim(measure: &'static str, metric: Metric, most: f64) -> Aim {
    Aim {
        measure,
        metric: metric.name,
        contender: HPK,
        against: Some(STOCK),
        bound: Bound::AtMost(most),
    }
}

impl Scenario for Node {
    fn name(&self) -> &'static str {
        "node"
    }

    fn contenders(&self) -> &'static [&'static str] {
        CONTENDERS
    }

    fn measures(&self) -> Vec<Measure> {
        [
            ("start", STARTING, START),
            ("start-50", STARTING, START_50),
            ("pods-100", STANDING, HUNDRED),
        ]
        .map(|(word, section, metrics)| Measure {
            word,
            section,
            metrics,
        })
        .to_vec()
    }

    fn aims(&self) -> Vec<Aim> {
        vec![
            aim("start", START[0], 0.5),
            aim("start-50", START_50[2], 0.5),
            aim("pods-100", HUNDRED[0], 0.5),
            aim("pods-100", HUNDRED[1], 1.0),
            aim("pods-100", HUNDRED[2], 1.0),
            aim("pods-100", HUNDRED[3], 1.0),
        ]
    }

    /// A pod is run and removed, so that what a node does only once is done.
    fn set_up(&mut self, contender: &'static str) -> Result<()> {
        let nodes = match &mut self.nodes {
            Some(nodes) => nodes,
            none => none.insert(Nodes::start(&self.testbed)?),
        };
        if contender == STOCK {
            nodes.add_stock()?;
        }
        nodes.run(contender, 1)?;
        nodes.remove(contender, 1)?;
        Ok(())
    }

    fn measure(&mut self, contender: &'static str, measure: &str, pace: Pace) -> Result<Vec<f64>> {
        let nodes = self.nodes.as_ref().context("no cluster has been started")?;
        let part = |values: &[f64], percent| percentile(values, percent).context("no pods");
        match measure {
            "start" => {
                let mut seconds = Vec::new();
                for _ in 0..pace.count(ALONE.0, ALONE.1) {
                    seconds.extend(nodes.run(contender, 1)?.runs);
                    nodes.remove(contender, 1)?;
                }
                Ok(vec![
                    part(&seconds, 50.0)? * 1e3,
                    part(&seconds, 100.0)? * 1e3,
                ])
            }
            "start-50" => {
                let count = pace.count(AT_ONCE.0, AT_ONCE.1);
                let times = nodes.run(contender, count)?;
                nodes.remove(contender, count)?;
                let runs = &times.runs;
                Ok(vec![part(runs, 50.0)?, part(runs, 99.0)?, times.all])
            }
            "pods-100" => {
                let count = pace.count(MANY.0, MANY.1);
                let before = memory::available()?;
                let times = nodes.run(contender, count)?;
                let after = memory::available()?;
                let used = nodes.used(contender, pace.count(IDLE.0, IDLE.1));
                let removed = nodes.remove(contender, count)?;
                let used = used?;
                Ok(vec![
                    times.all,
                    (before - after) / count as f64,
                    used.resident,
                    used.busy,
                    removed.all,
                ])
            }
            other => bail!("there is no measure {other:?}"),
        }
    }

    fn tear_down(&mut self) -> Result<()> {
        match self.nodes.take() {
            Some(nodes) => nodes.end(),
            None => Ok(()),
        }
    }
}
