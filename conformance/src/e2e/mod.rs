//! Kubernetes' own end-to-end suite on a cluster of ours, judged by the list of what is
//! known to fail (docs/conformance.md).
//!
//! Expected flow: `conformance/e2e/build.sh` has put the suite where the testbed's hosts see
//! it; a cluster is started for the run, the suite run from host `login`, its report read and
//! compared with the list, the cluster cancelled.
//!
//! Layout:
//! - [`known`]: the list
//! - [`outcome`]: the report of ginkgo

mod known;
mod outcome;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::cluster::{Cluster, in_cgroup};
use crate::testbed::Testbed;
use known::Known;
use outcome::Run;

/// Where the testbed's hosts see the suite's programs.
const SUITE: &str = "/run/testbed/e2e/current";
/// Slurm options of the cluster: tests ask for more CPUs than pods of ours use.
const SIZE: &str = "--cpus-per-task=8 --mem=9G --time=240";
/// Tests that can't run beside others, or that want a cloud or another system.
const SKIP: &str = r"\[Serial\]|\[Disruptive\]|\[Flaky\]|\[Windows\]";

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Which tests (a regular expression on their whole name)
    #[arg(
        long,
        default_value = r"\[NodeConformance\]|\[sig-node\].*\[Conformance\]|\[sig-storage\].*\[Conformance\]"
    )]
    focus: String,
    /// Which of them not
    #[arg(long, default_value = SKIP)]
    skip: String,
    /// How many tests at once
    #[arg(long, default_value_t = 4)]
    procs: usize,
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// Seconds the suite may take
    #[arg(long, default_value_t = 5400)]
    limit: u64,
    /// Run on the newest cluster of hpc that runs, and leave it
    #[arg(long)]
    running: bool,
    /// The list of what is known to fail
    #[arg(long, default_value = "docs/conformance.md")]
    known: PathBuf,
    /// The folder for report and log
    #[arg(long, default_value = "target/e2e")]
    out: PathBuf,
}

/// Runs the suite; whether nothing failed that isn't listed, and nothing listed passed.
pub fn run(testbed: &Testbed, options: &Options) -> Result<bool> {
    let known = Known::load(&options.known)?;
    fs::create_dir_all(&options.out)
        .with_context(|| format!("making the folder {}", options.out.display()))?;
    let cluster = if options.running {
        Cluster::running(testbed)?
    } else {
        let cgroup = in_cgroup(testbed)?.unwrap_or_default();
        Cluster::start(testbed, options.nodes, &format!("{SIZE} {cgroup}"))?
    };
    let report = suite(testbed, &cluster, options);
    if !options.running {
        cluster.cancel()?;
    }
    let report = report?;
    let verdict = known.judge(&report);
    println!("{report}");
    print!("{verdict}");
    Ok(verdict.holds())
}

fn suite(testbed: &Testbed, cluster: &Cluster, options: &Options) -> Result<Run> {
    let began = Instant::now();
    let folder = format!("e2e-{}", cluster.job);
    let script = format!(
        "cd && rm -rf {folder} && mkdir {folder} && out=$PWD/{folder} && export KUBECONFIG=~/.hpk/kubeconfig && \
         kubectl config use-context hpk-{job} >/dev/null && \
         {SUITE}/ginkgo run --procs={procs} --focus={focus} --skip={skip} --timeout={limit}s \
           --no-color --succinct --json-report=report.json --output-dir=$out {SUITE}/e2e.test -- \
           --provider=local --kubeconfig=$KUBECONFIG --dns-domain=cluster.local \
           --num-nodes={nodes} --disable-log-dump --report-dir=$out >{folder}/log 2>&1",
        job = cluster.job,
        procs = options.procs,
        focus = quote(&options.focus),
        skip = quote(&options.skip),
        limit = options.limit,
        nodes = options.nodes,
    );
    // Its exit code only repeats what the report says test by test.
    let output = testbed
        .on("hpc", "login", script)
        .limit(options.limit + 60)
        .output()?;
    let fetch = |name: &str| -> Result<Vec<u8>> {
        let file = format!("~/{folder}/{name}");
        let text = testbed
            .on("hpc", "login", format!("cat {file}"))
            .success()
            .with_context(|| format!("the suite ended with exit {}", output.status))?;
        let copy = options.out.join(Path::new(name));
        fs::write(&copy, &text).with_context(|| format!("writing {}", copy.display()))?;
        Ok(text.into_bytes())
    };
    fetch("log")?;
    let run = Run::parse(&fetch("report.json")?, began.elapsed())?;
    if run.is_empty() {
        bail!(
            "no test matches --focus {:?} without --skip {:?}",
            options.focus,
            options.skip
        );
    }
    Ok(run)
}

/// As one word of a POSIX shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
