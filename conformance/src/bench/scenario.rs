//! What a benchmark is made of: scenarios, in which contenders are measured in turn.

use anyhow::Result;

/// Which way a metric should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

impl Better {
    pub fn word(self) -> &'static str {
        match self {
            Self::Higher => "higher",
            Self::Lower => "lower",
        }
    }
}

/// One figure that a measure gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    pub better: Better,
}

/// One run of something on one contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// Names it within its scenario, on the command line too.
    pub word: &'static str,
    /// The heading that its figures stand under.
    pub section: &'static str,
    pub metrics: &'static [Metric],
}

/// What an issue asks for. Shown beside what was measured; never passed or failed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aim {
    pub measure: &'static str,
    pub metric: &'static str,
    pub contender: &'static str,
    /// The contender that the ratio is to; without one, the bound is on the value itself.
    pub against: Option<&'static str>,
    pub bound: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    pub fn value(self) -> f64 {
        match self {
            Self::AtLeast(value) | Self::AtMost(value) => value,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(value) => write!(formatter, "≥ {value}"),
            Self::AtMost(value) => write!(formatter, "≤ {value}"),
        }
    }
}

/// How long and how often, within one round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Seconds of traffic for each measure that is given a time.
    pub seconds: f64,
    /// Only to see that everything works: few operations instead of many.
    pub quick: bool,
}

impl Pace {
    /// How many operations, for a measure that is given a number.
    pub fn count(self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

/// Contenders that are measured alike. All are set up first; then the rounds run over them.
pub trait Scenario {
    fn name(&self) -> &'static str;

    /// The first one is the reference, which ratios are to.
    fn contenders(&self) -> &'static [&'static str];

    fn measures(&self) -> Vec<Measure>;

    fn aims(&self) -> Vec<Aim>;

    /// Whether the measure makes sense for the contender.
    fn applies(&self, _contender: &str, _measure: &str) -> bool {
        true
    }

    fn set_up(&mut self, contender: &'static str) -> Result<()>;

    /// A value for each metric of the measure, in their order.
    fn measure(&mut self, contender: &'static str, measure: &str, pace: Pace) -> Result<Vec<f64>>;

    /// Removes whatever `set_up` made, also where it failed half-way. May be repeated.
    fn tear_down(&mut self) -> Result<()>;
}
