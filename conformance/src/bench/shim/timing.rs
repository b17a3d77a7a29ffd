//! Start, exec and log throughput.

use anyhow::{Context as _, Result, bail};

use super::containerd::{Containerd, HOST, IMAGE, runtime};
use super::{CONTENDERS, HPK, RUNC};
use crate::bench::scenario::{Aim, Better, Bound, Measure, Metric, Pace, Scenario};
use crate::bench::statistics::percentile;
use crate::testbed::Testbed;

const SECTION: &str = "ctr, one containerd";
const AT_ONCE: usize = 20;
/// Bytes that a container writes: 64 KiB blocks, how many in a full and in a quick run; enough
/// for /proc/uptime, which counts hundredths of a second.
const BLOCK: usize = 64 << 10;
const BLOCKS: (usize, usize) = (16384, 1024);

const fn metric(name: &'static str, unit: &'static str, better: Better) -> Metric {
    Metric { name, unit, better }
}

const RUN: &[Metric] = &[
    metric("ctr run --rm true, p50", "ms", Better::Lower),
    metric("ctr run --rm true, p99", "ms", Better::Lower),
];
const RUN_20: &[Metric] = &[
    metric("20 runs at once, until the last ends", "ms", Better::Lower),
    metric("20 runs at once, rate", "tasks/s", Better::Higher),
];
const EXEC: &[Metric] = &[
    metric("ctr task exec true, p50", "ms", Better::Lower),
    metric("ctr task exec true, p99", "ms", Better::Lower),
];
const LOGS: &[Metric] = &[
    metric("output through FIFOs to ctr", "MB/s", Better::Higher),
    metric("output to a log file", "MB/s", Better::Higher),
];

pub struct Timing {
    containerd: Containerd,
    running: bool,
}

impl Timing {
    pub fn new(testbed: &Testbed) -> Self {
        Self {
            containerd: Containerd::new(testbed),
            running: false,
        }
    }

    /// MB/s at which a program's output is taken off it, by the clock in the container: the
    /// container's start doesn't count.
    fn output(&self, contender: &str, blocks: usize, to_file: bool) -> Result<f64> {
        let runtime = runtime(contender);
        let program = format!(
            "sh -c 'read before rest < /proc/uptime; dd if=/dev/zero bs={BLOCK} count={blocks} 2> /dev/null
             read after rest < /proc/uptime; echo took $before $after >&2'"
        );
        let id = format!("{contender}-log");
        let script = if to_file {
            format!(
                "set -e; log=$(mktemp); trap 'rm $log' EXIT
                 ctr run --rm --log-uri file://$log --runtime {runtime} {IMAGE} {id} {program}
                 tail -c 50 $log"
            )
        } else {
            format!("ctr run --rm --runtime {runtime} {IMAGE} {id} {program} 2>&1 > /dev/null")
        };
        let text = self.containerd.on(&script).limit(120).success()?;
        rate(&text, BLOCK * blocks)
    }
}

/// "took BEFORE AFTER", in seconds, as MB/s.
fn rate(text: &str, bytes: usize) -> Result<f64> {
    let words: Vec<f64> = text
        .rsplit_once("took ")
        .map(|(_, rest)| rest.split_whitespace().map(str::parse).collect())
        .and_then(Result::ok)
        .with_context(|| format!("the container said {text:?}"))?;
    match words.as_slice() {
        [before, after] if after > before => Ok(bytes as f64 / 1e6 / (after - before)),
        _ => bail!("the container said {text:?}"),
    }
}

impl Scenario for Timing {
    fn name(&self) -> &'static str {
        "ctr"
    }

    fn contenders(&self) -> &'static [&'static str] {
        CONTENDERS
    }

    fn measures(&self) -> Vec<Measure> {
        [
            ("run", RUN),
            ("run-20", RUN_20),
            ("exec", EXEC),
            ("logs", LOGS),
        ]
        .map(|(word, metrics)| Measure {
            word,
            section: SECTION,
            metrics,
        })
        .to_vec()
    }

    fn aims(&self) -> Vec<Aim> {
        [("run", RUN[0].name, 1.5), ("exec", EXEC[0].name, 1.0)]
            .map(|(measure, metric, most)| Aim {
                measure,
                metric,
                contender: HPK,
                against: Some(RUNC),
                bound: Bound::AtMost(most),
            })
            .to_vec()
    }

    /// The container that execs go to; with it, what a runtime does only once is done.
    fn set_up(&mut self, contender: &'static str) -> Result<()> {
        if !self.running {
            self.containerd.start().context(HOST)?;
            self.running = true;
        }
        self.containerd
            .keep(contender, &format!("{contender}-exec"))?;
        Ok(())
    }

    fn measure(&mut self, contender: &'static str, measure: &str, pace: Pace) -> Result<Vec<f64>> {
        let run = format!(
            "ctr run --rm --runtime {} {IMAGE} {contender}-{{}} true",
            runtime(contender)
        );
        let both = |seconds: &[f64]| -> Result<Vec<f64>> {
            [50.0, 99.0]
                .iter()
                .map(|percent| Ok(percentile(seconds, *percent).context("no runs")? * 1e3))
                .collect()
        };
        match measure {
            "run" => both(&self.containerd.time(pace.count(50, 2), 1, &run)?.runs),
            "exec" => {
                let exec = format!("ctr task exec --exec-id e{{}} {contender}-exec true");
                both(&self.containerd.time(pace.count(50, 2), 1, &exec)?.runs)
            }
            "run-20" => {
                let times = self.containerd.time(AT_ONCE, AT_ONCE, &run)?;
                Ok(vec![times.all * 1e3, AT_ONCE as f64 / times.all])
            }
            "logs" => {
                let blocks = pace.count(BLOCKS.0, BLOCKS.1);
                Ok(vec![
                    self.output(contender, blocks, false)?,
                    self.output(contender, blocks, true)?,
                ])
            }
            other => bail!("there is no measure {other:?}"),
        }
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
    fn the_containers_own_clock_makes_the_rate() {
        assert_eq!(rate("\0\0took 10.25 10.50\n", 500_000_000).unwrap(), 2000.0);
        assert!(rate("took 3.00 3.00\n", 1).is_err());
        assert!(rate("dd: no space", 1).is_err());
    }
}
