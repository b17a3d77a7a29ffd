//! Runs a scenario: sets up, measures in rounds, tears down.
//!
//! In each round every measure visits all contenders, one after the other, so that a change
//! of the machine's mood touches all alike; who begins moves on by one from round to round. (In
//! a sparse run, which compares nothing, it visits every other one.)

use anyhow::{Context as _, Result, ensure};

use super::scenario::{Measure, Pace, Scenario};

/// Which measures and contenders of a scenario are wanted, and how often.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Parts of `SCENARIO/MEASURE`; empty for all.
    pub only: Vec<String>,
    /// Parts of contenders' names; empty for all. A scenario's reference always runs.
    pub contenders: Vec<String>,
    pub repeats: usize,
    pub pace: Pace,
    /// Of many contenders each only every other measure: a measure is made for all by the same code.
    pub is_sparse: bool,
}

/// One metric of one contender, a value a round; `None` where measuring failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub measure: Measure,
    /// Which of the measure's metrics.
    pub metric: usize,
    pub contender: &'static str,
    pub values: Vec<Option<f64>>,
}

/// What a scenario gave.
#[derive(Debug, Default)]
pub struct Outcome {
    pub series: Vec<Series>,
    /// What went wrong, each with where.
    pub failures: Vec<String>,
}

impl Selection {
    pub fn measures(&self, scenario: &dyn Scenario) -> Vec<Measure> {
        let mut measures = scenario.measures();
        measures.retain(|measure| {
            let path = format!("{}/{}", scenario.name(), measure.word);
            is_wanted(&self.only, &path)
        });
        measures
    }

    pub fn contenders(&self, scenario: &dyn Scenario) -> Vec<&'static str> {
        let all = scenario.contenders();
        all.iter()
            .enumerate()
            .filter(|(index, name)| *index == 0 || is_wanted(&self.contenders, name))
            .map(|(_, name)| *name)
            .collect()
    }
}

/// From how many contenders on a sparse run leaves some out.
const MANY: usize = 3;

/// Those of a measure's contenders that it takes: in a sparse run like the black squares of a board, so that each measure
/// has a contender, and each contender a measure, of two or more that all of them have.
fn due(fit: &[&'static str], row: usize, is_sparse: bool) -> Vec<&'static str> {
    let step = if is_sparse && fit.len() >= MANY { 2 } else { 1 };
    fit.iter().copied().skip(row % step).step_by(step).collect()
}

fn is_wanted(words: &[String], name: &str) -> bool {
    words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))
}

/// The contenders in the order of this round, which is counted from 0.
fn rotated(contenders: &[&'static str], round: usize) -> Vec<&'static str> {
    let mut order = contenders.to_vec();
    if !order.is_empty() {
        order.rotate_left(round % contenders.len());
    }
    order
}

/// Runs what is selected. Ends early, torn down, when `interrupted` says so. Progress goes to
/// `tell`, a line each.
pub fn run(
    scenario: &mut dyn Scenario,
    selection: &Selection,
    interrupted: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(&str),
) -> Outcome {
    let mut outcome = Outcome::default();
    let measures = selection.measures(scenario);
    if measures.is_empty() {
        return outcome;
    }
    let wanted = selection.contenders(scenario);
    let name = scenario.name();
    // What an earlier run that was killed left behind would be in the way.
    if let Err(error) = scenario.tear_down() {
        outcome
            .failures
            .push(format!("{name}: before the start: {error:#}"));
        return outcome;
    }
    let mut ready = Vec::new();
    for contender in wanted {
        if interrupted() {
            break;
        }
        tell(&format!("{name}: setting up {contender}"));
        match scenario.set_up(contender) {
            Ok(()) => ready.push(contender),
            Err(error) => outcome
                .failures
                .push(format!("{name}: setting up {contender}: {error:#}")),
        }
    }
    outcome.series = empty_series(scenario, &measures, &ready);
    for round in 0..selection.repeats {
        for (row, measure) in measures.iter().enumerate() {
            let mut fit = ready.clone();
            fit.retain(|contender| scenario.applies(contender, measure.word));
            for contender in rotated(&due(&fit, row, selection.is_sparse), round) {
                if interrupted() {
                    continue;
                }
                let result = take(scenario, contender, measure, selection.pace);
                let place = format!(
                    "{name}/{} {contender}, round {} of {}",
                    measure.word,
                    round + 1,
                    selection.repeats
                );
                match &result {
                    Ok(values) => tell(&format!("{place}: {}", in_words(measure, values))),
                    Err(error) => {
                        tell(&format!("{place}: {error:#}"));
                        outcome.failures.push(format!("{place}: {error:#}"));
                    }
                }
                record(&mut outcome.series, contender, measure, result.ok());
            }
        }
    }
    if interrupted() {
        outcome.failures.push(format!("{name}: interrupted"));
    }
    tell(&format!("{name}: tearing down"));
    if let Err(error) = scenario.tear_down() {
        outcome
            .failures
            .push(format!("{name}: tearing down: {error:#}"));
    }
    outcome
}

fn take(
    scenario: &mut dyn Scenario,
    contender: &'static str,
    measure: &Measure,
    pace: Pace,
) -> Result<Vec<f64>> {
    let values = scenario.measure(contender, measure.word, pace)?;
    ensure!(
        values.len() == measure.metrics.len(),
        "{} values for {} metrics",
        values.len(),
        measure.metrics.len()
    );
    values
        .iter()
        .find(|value| !value.is_finite())
        .map_or(Ok(()), |value| Err(anyhow::anyhow!("{value} is no figure")))
        .context("measuring")?;
    Ok(values)
}

fn empty_series(
    scenario: &dyn Scenario,
    measures: &[Measure],
    contenders: &[&'static str],
) -> Vec<Series> {
    let mut all = Vec::new();
    for measure in measures {
        for metric in 0..measure.metrics.len() {
            for contender in contenders {
                if scenario.applies(contender, measure.word) {
                    all.push(Series {
                        measure: *measure,
                        metric,
                        contender,
                        values: Vec::new(),
                    });
                }
            }
        }
    }
    all
}

fn record(all: &mut [Series], contender: &str, measure: &Measure, values: Option<Vec<f64>>) {
    for series in all
        .iter_mut()
        .filter(|series| series.measure == *measure && series.contender == contender)
    {
        let value = values.as_ref().map(|values| values[series.metric]);
        series.values.push(value);
    }
}

fn in_words(measure: &Measure, values: &[f64]) -> String {
    let words: Vec<_> = measure
        .metrics
        .iter()
        .zip(values)
        .map(|(metric, value)| {
            format!(
                "{} {} {}",
                metric.name,
                super::table::figure(*value),
                metric.unit
            )
        })
        .collect();
    words.join(", ")
}

#[cfg(test)]
#[path = "drive_tests.rs"]
mod tests;
