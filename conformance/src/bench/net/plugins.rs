//! ADD and DEL, alone and 32 at once: cni-hpk, which keeps its leases itself, beside the stock
//! `bridge` plugin with `host-local`; both without NAT rules, both called by `cni-hpk/client`.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::one_node::conflist;
use super::{HOSTS, PREFIX, remove_namespaces};
use crate::bench::scenario::{Aim, Better, Bound, Measure, Metric, Pace, Scenario};
use crate::bench::statistics::percentile;
use crate::testbed::Testbed;

const HOST: &str = HOSTS[0];
const CONTENDERS: &[&str] = &["bridge", "cni-hpk"];
const AT_ONCE: usize = 32;
/// Pods there are namespaces for.
const PODS: usize = 2 * AT_ONCE;
/// Seconds that a round may take.
const LIMIT: u64 = 180;

const fn milliseconds(name: &'static str) -> Metric {
    Metric {
        name,
        unit: "ms",
        better: Better::Lower,
    }
}

const ALONE: &[Metric] = &[
    milliseconds("ADD alone, p50"),
    milliseconds("ADD alone, p99"),
    milliseconds("DEL alone, p50"),
    milliseconds("DEL alone, p99"),
];
const TOGETHER: &[Metric] = &[
    milliseconds("ADD, 32 at once, p50"),
    milliseconds("ADD, 32 at once, p99"),
    milliseconds("DEL, 32 at once, p50"),
    milliseconds("DEL, 32 at once, p99"),
];

pub struct Plugins {
    testbed: Testbed,
}

impl Plugins {
    pub fn new(testbed: &Testbed) -> Self {
        Self {
            testbed: testbed.clone(),
        }
    }
}

fn node(contender: &str) -> String {
    format!("{PREFIX}-cni-{contender}")
}

fn measure(word: &'static str, metrics: &'static [Metric]) -> Measure {
    Measure {
        word,
        section: "ADD and DEL",
        metrics,
    }
}

impl Scenario for Plugins {
    fn name(&self) -> &'static str {
        "plugins"
    }

    fn contenders(&self) -> &'static [&'static str] {
        CONTENDERS
    }

    fn measures(&self) -> Vec<Measure> {
        vec![measure("alone", ALONE), measure("at-once", TOGETHER)]
    }

    fn aims(&self) -> Vec<Aim> {
        let mut aims = Vec::new();
        for measure in self.measures() {
            for metric in measure.metrics {
                aims.push(Aim {
                    measure: measure.word,
                    metric: metric.name,
                    contender: "cni-hpk",
                    against: Some("bridge"),
                    bound: Bound::AtMost(0.5),
                });
            }
        }
        aims
    }

    fn set_up(&mut self, contender: &'static str) -> Result<()> {
        let node = node(contender);
        let folder = format!("/run/{node}");
        let script = format!(
            "set -e; mkdir -p {folder}; cat > {folder}/conflist; ip netns add {node}
             for number in $(seq 0 {}); do ip netns add {node}-$number; done",
            PODS - 1
        );
        self.testbed
            .on("root", HOST, script)
            .input(conflist(contender, &folder).to_string())
            .success()?;
        Ok(())
    }

    fn measure(&mut self, contender: &'static str, measure: &str, pace: Pace) -> Result<Vec<f64>> {
        let node = node(contender);
        let (count, parallel) = if measure == "alone" {
            (pace.count(PODS, 3), 1)
        } else {
            let at_once = pace.count(AT_ONCE, 4);
            (pace.count(2, 1) * at_once, at_once)
        };
        let text = self
            .testbed
            .on(
                "root",
                HOST,
                format!(
                    "nsenter --net=/run/netns/{node} /hpk/bin/hpk-conformance on-host attach times \
                     --conf /run/{node}/conflist --plugins /hpk/bin:/usr/lib/cni \
                     --cache /run/{node}/cache --count {count} --parallel {parallel} \
                     --netns /run/netns/{node}-"
                ),
            )
            .limit(LIMIT)
            .success()?;
        let answer: Value =
            serde_json::from_str(&text).with_context(|| format!("the times were {text:?}"))?;
        let mut values = Vec::new();
        for operation in ["add", "del"] {
            let seconds: Vec<f64> = serde_json::from_value(answer[operation].clone())
                .with_context(|| format!("the times were {text:?}"))?;
            for percent in [50.0, 99.0] {
                let seconds = percentile(&seconds, percent).context("no times")?;
                values.push(seconds * 1e3);
            }
        }
        Ok(values)
    }

    fn tear_down(&mut self) -> Result<()> {
        let prefix = node("");
        self.testbed
            .on(
                "root",
                HOST,
                format!(
                    "set -e; {}; rm -rf /run/{prefix}*",
                    remove_namespaces(&prefix)
                ),
            )
            .success()
            .map(drop)
    }
}
