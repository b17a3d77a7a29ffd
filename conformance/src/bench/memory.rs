//! What memory the machine has left.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Memory has settled when so many readings in a row lie within so many KiB, or after so many
/// readings in all: on a machine that others use it never does, and the median of the last ones
/// is as good as can be had.
const READINGS: usize = 5;
const SETTLED_KIB: f64 = 2048.0;
const MOST_READINGS: usize = 60;
const PAUSE: Duration = Duration::from_millis(200);

/// MemAvailable, in MB, once it has settled.
pub fn available() -> Result<f64> {
    let mut readings = Vec::new();
    while !is_settled(&readings) && readings.len() < MOST_READINGS {
        std::thread::sleep(PAUSE);
        let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
        readings.push(available_kib(&text)?);
    }
    Ok(settled(&readings).context("no readings")? * 1024.0 / 1e6)
}

/// KiB.
fn available_kib(meminfo: &str) -> Result<f64> {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .context("/proc/meminfo has no MemAvailable")
}

fn last(readings: &[f64]) -> Option<&[f64]> {
    readings.get(readings.len().checked_sub(READINGS)?..)
}

fn is_settled(readings: &[f64]) -> bool {
    last(readings).is_some_and(|last| {
        let least = last.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = last.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        greatest - least <= SETTLED_KIB
    })
}

fn settled(readings: &[f64]) -> Option<f64> {
    let mut last = last(readings)?.to_vec();
    last.sort_by(f64::total_cmp);
    Some(last[READINGS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_settled_when_the_last_readings_agree() {
        let moving = [9e6, 8e6, 7e6, 6e6, 5e6];
        assert!(!is_settled(&moving));
        let mut readings = moving.to_vec();
        readings.extend([5e6, 5e6 + 1000.0, 5e6, 5e6 + 500.0]);
        assert!(is_settled(&readings));
        assert_eq!(settled(&readings), Some(5e6));
        assert!(!is_settled(&readings[..4]));
    }

    #[test]
    fn available_memory_is_read_by_its_name() {
        let text = "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:    5 kB\n";
        assert_eq!(available_kib(text).unwrap(), 5.0);
        assert!(available_kib("MemTotal: 9 kB\n").is_err());
    }
}
