//! Times, in seconds since 1970, and how people read them.

use std::time::{SystemTime, UNIX_EPOCH};

pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// "for 59 min, until 2026-11-21 12:55 UTC".
pub fn time_left(ends: Option<i64>, now: i64) -> String {
    let Some(ends) = ends else {
        return "without a time limit that Slurm names".into();
    };
    let left = (ends - now).max(0);
    let length = match left {
        0..120 => format!("{left} s"),
        120..7200 => format!("{} min", left / 60),
        _ => format!("{:.1} h", left as f64 / 3600.0),
    };
    format!("for {length}, until {}", utc(ends))
}

/// Seconds since 1970 as "2026-11-21 12:55 UTC".
pub fn utc(seconds: i64) -> String {
    match time::OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(at) => format!("{} {:02}:{:02} UTC", at.date(), at.hour(), at.minute()),
        Err(_) => format!("{seconds} s after 1970"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_the_unit_that_fits() {
        let at = 1_795_265_700;
        let left = |seconds| time_left(Some(at + seconds), at);
        assert!(left(119).starts_with("for 119 s, until 2026-11-21 12:56 UTC"));
        assert!(left(3600).starts_with("for 60 min, "));
        assert!(left(9000).starts_with("for 2.5 h, "));
        assert!(left(-5).starts_with("for 0 s, "));
        assert!(time_left(None, at).starts_with("without"));
    }
}
