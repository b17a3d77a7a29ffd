//! Waiting for a condition, with a limit that names what was waited for.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long to pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Calls `look` until it gives a value. An error of `look` ends the wait at once; after
/// `limit` the error says what was awaited and what `look` last answered instead.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match look()? {
            Ok(value) => return Ok(value),
            Err(instead) if start.elapsed() > limit => {
                bail!(
                    "waited {} s for {what}; last seen: {instead}",
                    limit.as_secs()
                )
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
