//! Ten containers at once, from nothing and from what is there.

use anyhow::{Result, bail};

use super::{APPTAINER, HPK, IMAGE, Place};
use crate::bench::scenario::{Aim, Better, Bound, Measure, Metric, Pace, Scenario};
use crate::testbed::Testbed;

/// The contenders; the first is the reference.
const CONTENDERS: &[&str] = &[APPTAINER, HPK];
const SECTION: &str = "Ten containers of it at once, until the last has ended";
/// How many, in a full and in a quick run.
const AT_ONCE: (usize, usize) = (10, 2);

const COLD: &[Metric] = &[metric("from a cold store")];
const WARM: &[Metric] = &[metric("from a warm store")];

const fn metric(name: &'static str) -> Metric {
    Metric {
        name,
        unit: "s",
        better: Better::Lower,
    }
}

pub struct Burst(Place);

impl Burst {
    pub fn new(testbed: &Testbed) -> Self {
        Self(Place {
            testbed: testbed.clone(),
        })
    }

    fn run(&self, contender: &str, count: usize) -> Result<f64> {
        let command = match contender {
            APPTAINER => format!("apptainer --quiet exec docker://{IMAGE} true"),
            HPK => format!("hpktainer run --quiet --rm {IMAGE} true"),
            other => bail!("there is no contender {other:?}"),
        };
        Ok(self.0.time(count, &command)?.all)
    }
}

impl Scenario for Burst {
    fn name(&self) -> &'static str {
        "burst"
    }

    fn contenders(&self) -> &'static [&'static str] {
        CONTENDERS
    }

    fn measures(&self) -> Vec<Measure> {
        [("cold", COLD), ("warm", WARM)]
            .map(|(word, metrics)| Measure {
                word,
                section: SECTION,
                metrics,
            })
            .to_vec()
    }

    fn aims(&self) -> Vec<Aim> {
        [("cold", COLD), ("warm", WARM)]
            .map(|(measure, metrics)| Aim {
                measure,
                metric: metrics[0].name,
                contender: HPK,
                against: Some(APPTAINER),
                bound: Bound::AtMost(1.0),
            })
            .to_vec()
    }

    fn set_up(&mut self, _: &'static str) -> Result<()> {
        self.0.make()
    }

    fn measure(&mut self, contender: &'static str, measure: &str, pace: Pace) -> Result<Vec<f64>> {
        let count = pace.count(AT_ONCE.0, AT_ONCE.1);
        match measure {
            "cold" => self.0.clear("apptainer store")?,
            // One alone fills it, whatever has been measured before.
            "warm" => drop(self.run(contender, 1)?),
            other => bail!("there is no measure {other:?}"),
        }
        Ok(vec![self.run(contender, count)?])
    }

    fn tear_down(&mut self) -> Result<()> {
        self.0.remove()
    }
}
