//! The benchmarks: `bench net`, `bench shim`, `bench pods` and `bench pull`.
//!
//! Expected flow: a scenario sets its contenders up on the testbed, all at the same time;
//! rounds of measuring visit them in turn, who begins rotating; the scenario tears down. What
//! counts is the ratio of a contender to the scenario's reference in the same round: figures
//! of different runs, or machines, are not comparable. Nothing here passes or fails by a
//! figure; a run fails only when something could not be measured.
//!
//! Layout:
//! - `scenario` – what a benchmark is made of,
//! - `drive` – runs one,
//! - `statistics`, `results`, `table`, `plot` – from values to ratios, JSON, text and SVG,
//! - `machine`, `limits`, `interrupt` – what is measured on, its settings, Ctrl-C,
//! - `net` – the pod network's scenarios; `shim` – the runtime shim's; `pods` – the node's; `pull` – the image store's,
//! - `memory` – what the machine has left,
//! - `on_host` – the parts of this program that run on the testbed's hosts.

mod drive;
mod interrupt;
mod limits;
mod machine;
mod memory;
mod net;
pub mod on_host;
mod plot;
mod pods;
mod pull;
mod results;
mod scenario;
mod shim;
mod statistics;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};

use crate::testbed::Testbed;
use drive::Selection;
use limits::{SOCKET_BUFFER, SocketBuffers, Turn};
use machine::Machine;
use results::Results;
use scenario::{Pace, Scenario};

/// Seconds of traffic in a quick run; iperf3 and sockperf take whole ones.
const QUICK: f64 = 1.0;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Suite {
    /// The pod network against the stock plugins and a kernel VXLAN (issue 4)
    Net(Options),
    /// The runtime shim against containerd-shim-runc-v2 (issue 5)
    Shim(Options),
    /// A node's pods against a stock kubelet, containerd and runc (issue 6)
    Pods(Options),
    /// The image store against skopeo, mksquashfs and Apptainer (issue 7)
    Pull(Options),
}

#[derive(Debug, Args)]
pub struct Options {
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    repeats: u16,
    /// Seconds of traffic per measure and round
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
    /// One short round, to see that everything can be measured
    #[arg(long)]
    quick: bool,
    /// Only measures with WORD in their SCENARIO/MEASURE (repeatable; --list names them)
    #[arg(long, value_name = "WORD")]
    only: Vec<String>,
    /// Only contenders with WORD in their name, and each scenario's reference (repeatable)
    #[arg(long, value_name = "WORD")]
    contender: Vec<String>,
    /// Names the measures and contenders, and measures nothing
    #[arg(long)]
    list: bool,
    /// Folder for SUITE.json, SUITE.md and SUITE.svg; without it only the table is printed
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Said with the figures, e.g. that the machine was busy
    #[arg(long)]
    note: Option<String>,
}

impl Options {
    fn selection(&self) -> Selection {
        Selection {
            only: self.only.clone(),
            contenders: self.contender.clone(),
            repeats: if self.quick { 1 } else { self.repeats.into() },
            pace: Pace {
                seconds: if self.quick {
                    QUICK
                } else {
                    self.seconds.into()
                },
                quick: self.quick,
            },
            is_sparse: false,
        }
    }
}

/// Measures. False when something could not be measured.
pub fn run(testbed: &Testbed, suite: &Suite) -> Result<bool> {
    let (name, options, scenarios) = match suite {
        Suite::Net(options) => ("net", options, net::scenarios(testbed)),
        Suite::Shim(options) => ("shim", options, shim::scenarios(testbed)),
        Suite::Pods(options) => ("pods", options, pods::scenarios(testbed)),
        Suite::Pull(options) => ("pull", options, pull::scenarios(testbed)),
    };
    if options.list {
        list(&scenarios);
        return Ok(true);
    }
    let selection = options.selection();
    ensure!(
        scenarios
            .iter()
            .any(|scenario| !selection.measures(scenario.as_ref()).is_empty()),
        "no measure has one of {:?} in its name: see --list",
        options.only
    );
    let results = measure(testbed, name, scenarios, &selection, options.note.clone())?;
    println!("{}", table::render(&results));
    // Half a run must not take a whole one's place.
    if let Some(folder) = &options.output
        && !interrupt::requested()
    {
        write(&results, folder)?;
    }
    Ok(results.failures.is_empty())
}

/// Net and shim once, short and sparse: what could not be measured. (Pods want a stock kubelet, which takes
/// minutes to build; a pull's image, one.)
pub fn quick(testbed: &Testbed) -> Result<Vec<String>> {
    let selection = Selection {
        only: Vec::new(),
        contenders: Vec::new(),
        repeats: 1,
        pace: Pace {
            seconds: QUICK,
            quick: true,
        },
        is_sparse: true,
    };
    let mut failures = Vec::new();
    for (name, scenarios) in [
        ("net", net::scenarios(testbed)),
        ("shim", shim::scenarios(testbed)),
    ] {
        let results = measure(testbed, name, scenarios, &selection, None)?;
        failures.extend(results.failures);
    }
    Ok(failures)
}

fn measure(
    testbed: &Testbed,
    suite: &'static str,
    mut scenarios: Vec<Box<dyn Scenario>>,
    selection: &Selection,
    note: Option<String>,
) -> Result<Results> {
    interrupt::install()?;
    let _turn = Turn::wait()?;
    let _buffers = SocketBuffers::limit()?;
    let machine = Machine {
        socket_buffers: Some(SOCKET_BUFFER),
        ..Machine::describe(testbed, net::HOSTS[0])?
    };
    eprintln!("{}", machine.in_words());
    let mut results = Results {
        suite,
        note,
        machine,
        repeats: selection.repeats,
        seconds: selection.pace.seconds,
        blocks: Vec::new(),
        aims: Vec::new(),
        failures: Vec::new(),
    };
    for scenario in &mut scenarios {
        if interrupt::requested() {
            break;
        }
        let outcome = drive::run(
            scenario.as_mut(),
            selection,
            &interrupt::requested,
            &mut |line| eprintln!("{line}"),
        );
        results.add(scenario.as_ref(), outcome);
    }
    Ok(results)
}

fn list(scenarios: &[Box<dyn Scenario>]) {
    for scenario in scenarios {
        let contenders = scenario.contenders();
        println!(
            "{}: {} (reference), {}",
            scenario.name(),
            contenders[0],
            contenders[1..].join(", ")
        );
        for measure in scenario.measures() {
            let metrics: Vec<_> = measure.metrics.iter().map(|metric| metric.name).collect();
            println!(
                "    {}/{}: {}",
                scenario.name(),
                measure.word,
                metrics.join("; ")
            );
        }
    }
}

fn write(results: &Results, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let suite = results.suite;
    let note = results
        .note
        .as_ref()
        .map_or(String::new(), |note| format!("**{note}**\n\n"));
    let page = format!(
        "# `make bench-{suite}`\n\n{note}Written by the run itself; medians, in brackets the least and the greatest of {} rounds.\n\n\
         ![Ratios to the references]({suite}.svg)\n\n```\n{}\n{}```\n",
        results.repeats,
        results.machine.in_words(),
        table::render(results)
    );
    for (end, text) in [
        ("json", serde_json::to_string_pretty(results)? + "\n"),
        ("svg", plot::render(results)),
        ("md", page),
    ] {
        let path = folder.join(format!("{suite}.{end}"));
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
