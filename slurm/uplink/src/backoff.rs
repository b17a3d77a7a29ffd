//! How often what has ended may start again: with growing pauses, and not for ever.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What ends this often within the window doesn't come back.
pub const TRIES: usize = 6;
pub const WINDOW: Duration = Duration::from_secs(60);

/// When something failed.
#[derive(Debug)]
pub struct Failures {
    at: VecDeque<Instant>,
    /// The first pause before a restart; each next one is twice as long.
    first: Duration,
}

impl Failures {
    pub fn new(first: Duration) -> Self {
        Self {
            at: VecDeque::new(),
            first,
        }
    }

    /// Counts a failure: the pause before the next try, or None when it was one too many.
    pub fn add(&mut self, now: Instant) -> Option<Duration> {
        while self
            .at
            .front()
            .is_some_and(|at| now.duration_since(*at) > WINDOW)
        {
            self.at.pop_front();
        }
        self.at.push_back(now);
        let count = self.at.len();
        (count < TRIES).then(|| self.first * (1 << (count - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(200);

    #[test]
    fn pauses_double_and_the_sixth_failure_in_a_minute_is_the_last() {
        let mut failures = Failures::new(FIRST);
        let start = Instant::now();
        let pauses: Vec<_> = (0..6)
            .map(|n| failures.add(start + Duration::from_secs(n)))
            .collect();
        assert_eq!(pauses[0], Some(FIRST));
        assert_eq!(pauses[4], Some(FIRST * 16));
        assert_eq!(pauses[5], None);
    }

    #[test]
    fn failures_of_long_ago_do_not_count() {
        let mut failures = Failures::new(FIRST);
        let start = Instant::now();
        for n in 0..20 {
            let pause = failures.add(start + Duration::from_secs(n * 61));
            assert_eq!(pause, Some(FIRST));
        }
    }
}
