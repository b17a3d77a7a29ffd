//! Times a command that is run again and again, one at a time or several at once.

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::Times;

#[derive(Debug, Args)]
pub struct Options {
    /// How often in all
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// How many at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    parallel: u16,
    /// The command; `{}` in it becomes the run's number, from 0
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// A run that fails ends all with its output.
pub fn run(options: &Options) -> Result<Times> {
    let next = AtomicUsize::new(0);
    let runs = Mutex::new(Vec::with_capacity(options.count));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.parallel)
            .map(|_| scope.spawn(|| work(options, &next, &runs)))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
        })
    })?;
    let all = start.elapsed().as_secs_f64();
    let runs = runs
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
    Ok(Times { runs, all })
}

fn work(options: &Options, next: &AtomicUsize, runs: &Mutex<Vec<f64>>) -> Result<()> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= options.count {
            return Ok(());
        }
        let taken = once(&options.command, number)?;
        runs.lock()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?
            .push(taken);
    }
}

fn once(command: &[String], number: usize) -> Result<f64> {
    let words: Vec<String> = command
        .iter()
        .map(|word| word.replace("{}", &number.to_string()))
        .collect();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    let start = Instant::now();
    let output = command
        .output()
        .with_context(|| format!("running {words:?}"))?;
    let taken = start.elapsed().as_secs_f64();
    ensure!(
        output.status.success(),
        "{words:?}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(count: usize, parallel: u16, command: &[&str]) -> Options {
        Options {
            count,
            parallel,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    #[test]
    fn every_run_is_timed_and_gets_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("{}").display().to_string();
        let answer = run(&options(5, 2, &["touch", &file])).unwrap();
        assert_eq!(answer.runs.len(), 5);
        assert!(answer.all > 0.0);
        assert!(folder.path().join("4").exists() && !folder.path().join("5").exists());
    }

    #[test]
    fn a_run_that_fails_is_an_error_with_its_output() {
        let error = run(&options(1, 1, &["sh", "-c", "echo no such luck; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("no such luck"), "{error}");
    }
}
