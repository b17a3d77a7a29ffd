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

/// A duration as Go writes it: `300ms`, `1.5h`, `2m40s`.
///
/// # Errors
/// The text that is none.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 90s, 2m or 1h30m");
    let mut sum = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number_end = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        sum += Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        rest = tail;
    }
    match text.is_empty() {
        true => Err(wrong()),
        false => Ok(sum),
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
    fn durations_are_read_as_they_are_written() {
        for (text, millis) in [
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("1.5m", 90_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in ["", "90", "s", "5x", "-1s"] {
            assert!(
                parse_duration(text).is_err_and(|e| e.contains(text)),
                "{text}"
            );
        }
    }

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
