//! The benchmarks themselves: that they measure, not what.

use anyhow::{Result, ensure};

use super::Context;
use crate::bench;

/// One short round, of many contenders every other measure.
pub fn the_benchmarks_measure_every_contender(context: &mut Context) -> Result<()> {
    let failures = bench::quick(&context.testbed)?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
