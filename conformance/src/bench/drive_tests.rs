use anyhow::bail;

use super::super::scenario::{Aim, Better, Metric};
use super::*;

/// Writes down what it is asked for.
#[derive(Default)]
struct Fake {
    calls: Vec<String>,
    broken: bool,
}

const METRIC: Metric = Metric {
    name: "speed",
    unit: "m/s",
    better: Better::Higher,
};

impl Scenario for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn contenders(&self) -> &'static [&'static str] {
        &["reference", "ours", "unfit"]
    }

    fn measures(&self) -> Vec<Measure> {
        ["run", "walk"]
            .map(|word| Measure {
                word,
                section: "fake",
                metrics: &[METRIC],
            })
            .to_vec()
    }

    fn aims(&self) -> Vec<Aim> {
        Vec::new()
    }

    fn set_up(&mut self, contender: &'static str) -> Result<()> {
        self.calls.push(format!("up {contender}"));
        match contender {
            "unfit" => bail!("no network"),
            _ => Ok(()),
        }
    }

    fn measure(&mut self, contender: &'static str, measure: &str, _: Pace) -> Result<Vec<f64>> {
        self.calls.push(format!("{measure} {contender}"));
        if self.broken && contender == "ours" {
            bail!("ours is broken");
        }
        Ok(vec![self.calls.len() as f64])
    }

    fn tear_down(&mut self) -> Result<()> {
        self.calls.push("down".into());
        Ok(())
    }
}

fn selection(repeats: usize) -> Selection {
    Selection {
        only: Vec::new(),
        contenders: Vec::new(),
        repeats,
        pace: Pace {
            seconds: 0.0,
            quick: true,
        },
        is_sparse: false,
    }
}

fn go(fake: &mut Fake, selection: &Selection) -> Outcome {
    run(fake, selection, &|| false, &mut |_| {})
}

#[test]
fn contenders_are_interleaved_and_who_begins_rotates() {
    let mut fake = Fake::default();
    let outcome = go(
        &mut fake,
        &Selection {
            only: vec!["fake/run".into()],
            ..selection(2)
        },
    );
    assert_eq!(
        fake.calls,
        [
            "down",
            "up reference",
            "up ours",
            "up unfit",
            "run reference",
            "run ours",
            "run ours",
            "run reference",
            "down"
        ]
    );
    assert_eq!(outcome.failures, ["fake: setting up unfit: no network"]);
    let values: Vec<_> = outcome.series.iter().map(|one| one.values.len()).collect();
    assert_eq!(values, [2, 2]);
}

#[test]
fn a_sparse_run_of_many_leaves_no_measure_and_no_contender_out() {
    let all = ["a", "b", "c"];
    assert_eq!(due(&all, 0, true), ["a", "c"]);
    assert_eq!(due(&all, 1, true), ["b"]);
    assert_eq!(due(&all, 1, false), all);
    assert_eq!(due(&all[..2], 1, true), ["a", "b"]);
}

#[test]
fn a_failure_leaves_a_gap_and_the_rest_goes_on() {
    let mut fake = Fake {
        broken: true,
        ..Fake::default()
    };
    let outcome = go(&mut fake, &selection(1));
    assert_eq!(outcome.failures.len(), 3, "{:?}", outcome.failures);
    assert!(outcome.failures[1].contains("fake/run ours, round 1 of 1"));
    let ours = &outcome.series[1];
    assert_eq!((ours.contender, &ours.values[..]), ("ours", &[None][..]));
    assert!(outcome.series[0].values[0].is_some());
}

#[test]
fn an_interruption_still_tears_down_and_is_a_failure() {
    let mut fake = Fake::default();
    let outcome = run(&mut fake, &selection(3), &|| true, &mut |_| {});
    assert_eq!(fake.calls, ["down", "down"]);
    assert_eq!(outcome.failures, ["fake: interrupted"]);
}

#[test]
fn the_reference_runs_whatever_contenders_are_named() {
    let mut fake = Fake::default();
    go(
        &mut fake,
        &Selection {
            contenders: vec!["our".into()],
            ..selection(0)
        },
    );
    assert_eq!(fake.calls, ["down", "up reference", "up ours", "down"]);
}

#[test]
fn a_scenario_without_a_wanted_measure_is_left_alone() {
    let mut fake = Fake::default();
    let outcome = go(
        &mut fake,
        &Selection {
            only: vec!["nothing".into()],
            ..selection(1)
        },
    );
    assert!(fake.calls.is_empty() && outcome.series.is_empty());
}
