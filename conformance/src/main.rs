//! `hpk-conformance`: the whole-system cases, run on the testbed with real parts only.
//!
//! Layout:
//! - `testbed` – runs commands on the testbed's hosts,
//! - `cluster` – a Slurm job that is a Kubernetes cluster, and kubectl on it,
//! - `terminal` – a command under a pseudo-terminal of ours,
//! - `wait` – waiting for a condition with a limit,
//! - `cases` – the table of cases, a file per subject,
//! - `e2e` – Kubernetes' own end-to-end suite,
//! - `figures` – what `make demo` measures,
//! - `bench` – `make bench`: HPK beside what root would use,
//! - `report` – the table at the end.

mod bench;
mod cases;
mod cluster;
#[cfg(test)]
mod docs;
mod e2e;
mod figures;
mod report;
mod terminal;
mod testbed;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cases::Context;
use crate::report::Report;
use crate::testbed::Testbed;

#[derive(Parser)]
#[command(about = "Runs HPK's whole-system cases on the testbed")]
struct Arguments {
    /// The testbed's command
    #[arg(long, default_value = "conformance/testbed", global = true)]
    testbed: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Names of all cases, with their subject
    List,
    /// Runs the cases whose name or subject contains one of WORDS (all without any)
    Test { words: Vec<String> },
    /// Runs Kubernetes' own end-to-end suite (conformance/e2e/build.sh builds it)
    E2e(e2e::Options),
    /// Measures a running cluster: created → Running of single pods, in seconds
    PodStart {
        /// How many pods, one after the other
        #[arg(long, default_value_t = 7)]
        pods: usize,
    },
    /// Measures HPK beside what root would use; prints ratios
    #[command(subcommand)]
    Bench(bench::Suite),
    /// What `bench` runs on the testbed's hosts
    #[command(subcommand, hide = true)]
    OnHost(bench::on_host::Part),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hpk-conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let testbed = Testbed::new(arguments.testbed);
    match arguments.action {
        Action::List => {
            for case in cases::TABLE {
                println!("{:<12} {}", case.subject, case.name);
            }
            Ok(true)
        }
        Action::Test { words } => {
            let mut context = Context::new(testbed);
            let mut report = Report::default();
            for case in cases::TABLE.iter().filter(|case| case.matches(&words)) {
                report.add(case, cases::run(case, &mut context));
            }
            context.finish();
            report.print();
            Ok(report.passed())
        }
        Action::E2e(options) => e2e::run(&testbed, &options),
        Action::PodStart { pods } => {
            println!("{}", figures::pod_start(&testbed, pods)?);
            Ok(true)
        }
        Action::Bench(suite) => bench::run(&testbed, &suite),
        Action::OnHost(part) => {
            bench::on_host::run(&part)?;
            Ok(true)
        }
    }
}
