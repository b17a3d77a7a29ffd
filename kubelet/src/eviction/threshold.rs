//! Thresholds as the stock kubelet's `--eviction-hard` gives them: `memory.available<100Mi,nodefs.available<10%`. Pure.

use thiserror::Error;

use crate::quantity::Quantity;

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    /// Bytes of the disk under the pods' files.
    NodefsAvailable,
    NodefsInodesFree,
    PidAvailable,
}

/// What runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    Memory,
    Disk,
    Inodes,
    Pids,
}

const SIGNALS: [(&str, Signal); 4] = [
    ("memory.available", Signal::MemoryAvailable),
    ("nodefs.available", Signal::NodefsAvailable),
    ("nodefs.inodesFree", Signal::NodefsInodesFree),
    ("pid.available", Signal::PidAvailable),
];

impl Signal {
    pub fn resource(self) -> Resource {
        match self {
            Signal::MemoryAvailable => Resource::Memory,
            Signal::NodefsAvailable => Resource::Disk,
            Signal::NodefsInodesFree => Resource::Inodes,
            Signal::PidAvailable => Resource::Pids,
        }
    }
}

impl Resource {
    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Disk => "ephemeral-storage",
            Resource::Inodes => "inodes",
            Resource::Pids => "pids",
        }
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    #[error("{0:?} is not SIGNAL<VALUE")]
    Form(String),
    #[error(
        "{name:?} is none of memory.available, nodefs.available, nodefs.inodesFree, pid.available"
    )]
    Signal { name: String },
    #[error("{value:?} is neither a quantity nor a percentage from 0% to 100%")]
    Value { value: String },
}

/// There is pressure when less than this is left.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    Amount(Quantity),
    /// Of the capacity.
    Percent(f64),
}

/// What is left of a resource, and what there is of it, in its units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    pub signal: Signal,
    pub available: u64,
    /// 0 where the machine doesn't say: then nothing is lacking.
    pub capacity: u64,
}

impl Threshold {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (name, value) = text
            .split_once('<')
            .ok_or_else(|| Error::Form(text.to_owned()))?;
        let known = SIGNALS.iter().find(|(known, _)| *known == name);
        let (_, signal) = known.ok_or_else(|| Error::Signal {
            name: name.to_owned(),
        })?;
        let wrong = || Error::Value {
            value: value.to_owned(),
        };
        let value = match value.strip_suffix('%') {
            Some(percent) => {
                let percent: f64 = percent.parse().map_err(|_| wrong())?;
                if !(0.0..=100.0).contains(&percent) {
                    return Err(wrong());
                }
                Value::Percent(percent)
            }
            None => match Quantity::parse(value) {
                Ok(amount) if amount >= Quantity::default() => Value::Amount(amount),
                _ => return Err(wrong()),
            },
        };
        Ok(Self {
            signal: *signal,
            value,
        })
    }

    /// What must be left of `capacity`.
    pub fn amount(&self, capacity: u64) -> u64 {
        match self.value {
            Value::Amount(amount) => u64::try_from(amount.value()).unwrap_or(u64::MAX),
            Value::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }

    /// Whether less is left.
    pub fn is_met(&self, levels: &[Level]) -> bool {
        self.level(levels)
            .is_some_and(|level| level.available < self.amount(level.capacity))
    }

    pub fn level<'a>(&self, levels: &'a [Level]) -> Option<&'a Level> {
        levels
            .iter()
            .find(|level| level.signal == self.signal && level.capacity > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(available: u64, capacity: u64) -> [Level; 1] {
        [Level {
            signal: Signal::NodefsAvailable,
            available,
            capacity,
        }]
    }

    #[test]
    fn a_percentage_is_of_the_capacity_and_an_amount_is_an_amount() {
        let tenth = Threshold::parse("nodefs.available<10%").expect("parsed");
        assert!(tenth.is_met(&level(99, 1000)));
        assert!(!tenth.is_met(&level(100, 1000)));
        let amount = Threshold::parse("nodefs.available<1Ki").expect("parsed");
        assert!(amount.is_met(&level(1023, 1 << 20)));
        assert!(!amount.is_met(&level(1024, 1 << 20)));
    }

    #[test]
    fn what_the_machine_does_not_say_is_not_lacking() {
        let any = Threshold::parse("nodefs.available<100%").expect("parsed");
        assert!(!any.is_met(&level(0, 0)));
        let memory = Threshold::parse("memory.available<1Gi").expect("parsed");
        assert!(!memory.is_met(&level(0, 1000)));
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        for (text, part) in [
            ("memory.available", "memory.available"),
            ("memory.free<1Mi", "memory.free"),
            ("memory.available<x", "x"),
            ("nodefs.available<101%", "101%"),
            ("nodefs.available<-1", "-1"),
        ] {
            let error = Threshold::parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
