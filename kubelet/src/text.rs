//! Texts that people read in events and statuses: an error with its causes on one line, durations.

use std::error::Error;
use std::time::Duration;

/// `what: why: why that`. A cause whose text the line already ends with is not said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

/// What a shim said, without the frame its protocol puts around it; else the error with its causes.
pub fn of_shim(error: &hpk_shim_client::Error) -> String {
    match error.shim_message() {
        Some(said) => said.to_owned(),
        None => chain(error),
    }
}

/// `850ms`, `1.23s`, `2m40s`: as Go prints durations, rounded to milliseconds.
pub fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, millis) = (millis / 60_000, millis % 60_000);
    let seconds = format!("{}.{:03}", millis / 1000, millis % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thiserror::Error;

    #[derive(Debug, Error)]
    #[error("can't open the door")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow_after_a_colon() {
        let error = Outer(std::io::Error::other("it is locked"));
        assert_eq!(chain(&error), "can't open the door: it is locked");
    }

    #[test]
    fn durations_read_as_in_go() {
        let of = |millis| go_duration(Duration::from_millis(millis));
        assert_eq!(of(850), "850ms");
        assert_eq!(of(1230), "1.23s");
        assert_eq!(of(2000), "2s");
        assert_eq!(of(10_000), "10s");
        assert_eq!(of(160_000), "2m40s");
        assert_eq!(of(3_600_500), "1h0m0.5s");
    }
}
