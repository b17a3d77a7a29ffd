//! What a run gave, in the form that is written, printed and plotted. Pure.

use serde::Serialize;

use super::drive::{Outcome, Series};
use super::machine::Machine;
use super::scenario::{Aim, Scenario};
use super::statistics::{Spread, ratios};

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Results {
    pub suite: &'static str,
    /// What the reader must know, e.g. that the machine was not quiet.
    pub note: Option<String>,
    pub machine: Machine,
    pub repeats: usize,
    /// Seconds of traffic per measure and round.
    pub seconds: f64,
    pub blocks: Vec<Block>,
    pub aims: Vec<Judged>,
    pub failures: Vec<String>,
}

/// One metric, all contenders.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Block {
    pub scenario: &'static str,
    pub measure: &'static str,
    pub section: &'static str,
    pub metric: &'static str,
    pub unit: &'static str,
    pub better: &'static str,
    /// What the ratios are to.
    pub reference: &'static str,
    pub rows: Vec<Row>,
}

/// One contender's figures of a metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub contender: &'static str,
    /// A value a round; null where measuring failed.
    pub values: Vec<Option<f64>>,
    pub spread: Option<Spread>,
    /// Over the reference's value of the same round.
    pub ratio: Option<Spread>,
}

/// An aim beside what was measured for it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    pub measure: String,
    pub metric: &'static str,
    pub contender: &'static str,
    pub against: Option<&'static str>,
    pub aim: String,
    /// The number in `aim`.
    pub bound: f64,
    /// Ratio, or without `against` the value; null when it was not measured.
    pub measured: Option<Spread>,
}

impl Results {
    /// Takes up what a scenario gave.
    pub fn add(&mut self, scenario: &dyn Scenario, outcome: Outcome) {
        let reference = scenario.contenders()[0];
        self.blocks
            .extend(blocks(scenario.name(), reference, &outcome.series));
        for aim in scenario.aims() {
            let has =
                |contender| find(&outcome.series, aim.measure, aim.metric, contender).is_some();
            if has(aim.contender) && aim.against.is_none_or(has) {
                self.aims
                    .push(judge(scenario.name(), &aim, &outcome.series));
            }
        }
        self.failures.extend(outcome.failures);
    }

    /// Bounds on the contender's ratio to the block's reference.
    pub fn marks(&self, block: &Block, contender: &str) -> impl Iterator<Item = f64> {
        let measure = format!("{}/{}", block.scenario, block.measure);
        self.aims
            .iter()
            .filter(move |aim| {
                aim.measure == measure
                    && aim.metric == block.metric
                    && aim.contender == contender
                    && aim.against == Some(block.reference)
            })
            .map(|aim| aim.bound)
    }
}

fn blocks(scenario: &'static str, reference: &'static str, all: &[Series]) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for series in all {
        let metric = series.measure.metrics[series.metric];
        let beside = find(all, series.measure.word, metric.name, reference);
        let row = Row {
            contender: series.contender,
            values: series.values.clone(),
            spread: Spread::of(&known(&series.values)),
            ratio: beside
                .filter(|_| series.contender != reference)
                .and_then(|beside| Spread::of(&ratios(&series.values, &beside.values))),
        };
        match blocks.last_mut() {
            Some(block) if block.measure == series.measure.word && block.metric == metric.name => {
                block.rows.push(row);
            }
            _ => blocks.push(Block {
                scenario,
                measure: series.measure.word,
                section: series.measure.section,
                metric: metric.name,
                unit: metric.unit,
                better: metric.better.word(),
                reference,
                rows: vec![row],
            }),
        }
    }
    blocks
}

fn judge(scenario: &str, aim: &Aim, all: &[Series]) -> Judged {
    let own = find(all, aim.measure, aim.metric, aim.contender);
    let measured = match aim.against {
        None => own.and_then(|own| Spread::of(&known(&own.values))),
        Some(against) => own
            .zip(find(all, aim.measure, aim.metric, against))
            .and_then(|(own, against)| Spread::of(&ratios(&own.values, &against.values))),
    };
    Judged {
        measure: format!("{scenario}/{}", aim.measure),
        metric: aim.metric,
        contender: aim.contender,
        against: aim.against,
        aim: aim.bound.to_string(),
        bound: aim.bound.value(),
        measured,
    }
}

fn find<'a>(all: &'a [Series], measure: &str, metric: &str, contender: &str) -> Option<&'a Series> {
    all.iter().find(|series| {
        series.measure.word == measure
            && series.measure.metrics[series.metric].name == metric
            && series.contender == contender
    })
}

fn known(values: &[Option<f64>]) -> Vec<f64> {
    values.iter().flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scenario::{Better, Bound, Measure, Metric};

    const MEASURE: Measure = Measure {
        word: "tcp-1",
        section: "here",
        metrics: &[
            Metric {
                name: "speed",
                unit: "Gbit/s",
                better: Better::Higher,
            },
            Metric {
                name: "cost",
                unit: "s/GB",
                better: Better::Lower,
            },
        ],
    };

    fn series(metric: usize, contender: &'static str, values: &[f64]) -> Series {
        Series {
            measure: MEASURE,
            metric,
            contender,
            values: values.iter().copied().map(Some).collect(),
        }
    }

    fn all() -> Vec<Series> {
        vec![
            series(0, "wire", &[10.0, 20.0]),
            series(0, "ours", &[5.0, 5.0]),
            series(1, "wire", &[1.0, 1.0]),
            series(1, "ours", &[2.0, 4.0]),
        ]
    }

    #[test]
    fn each_metric_is_a_block_and_the_reference_has_no_ratio() {
        let blocks = blocks("hosts", "wire", &all());
        assert_eq!(blocks.len(), 2);
        assert_eq!(blocks[0].rows[0].ratio, None);
        let ratio = blocks[0].rows[1].ratio.unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (0.25, 0.375, 0.5));
        assert_eq!(blocks[1].better, "lower");
    }

    #[test]
    fn an_aim_is_judged_by_the_ratio_or_by_the_value() {
        let mut aim = Aim {
            measure: "tcp-1",
            metric: "speed",
            contender: "ours",
            against: Some("wire"),
            bound: Bound::AtLeast(0.5),
        };
        let judged = judge("hosts", &aim, &all());
        assert_eq!(
            (judged.aim.as_str(), judged.measured.unwrap().max),
            ("≥ 0.5", 0.5)
        );
        aim.against = None;
        assert_eq!(judge("hosts", &aim, &all()).measured.unwrap().median, 5.0);
        aim.contender = "nobody";
        assert_eq!(judge("hosts", &aim, &all()).measured, None);
    }
}
