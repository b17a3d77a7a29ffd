//! What is asked for: the query of /containerLogs, as `v1.PodLogOptions` has it.

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::super::query::Query;

/// Which streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    pub stdout: bool,
    pub stderr: bool,
}

/// Validated options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// The run before the current one.
    pub previous: bool,
    /// Nothing older than this.
    pub since: Option<OffsetDateTime>,
    /// A time before each line.
    pub timestamps: bool,
    /// Only so many lines from the end.
    pub tail: Option<u64>,
    /// Stop after so many bytes.
    pub limit: Option<u64>,
    pub streams: Streams,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            follow: false,
            previous: false,
            since: None,
            timestamps: false,
            tail: None,
            limit: None,
            streams: Streams {
                stdout: true,
                stderr: true,
            },
        }
    }
}

/// A query that can't be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{name} wants {wants}, not {value:?}")]
    Value {
        name: &'static str,
        wants: &'static str,
        value: String,
    },
    #[error("sinceSeconds and sinceTime exclude each other")]
    TwoSince,
    #[error("tailLines and a single stream exclude each other")]
    TailOfStream,
}

impl LogOptions {
    pub fn parse(query: &Query, now: OffsetDateTime) -> Result<Self, Error> {
        let seconds = number(query, "sinceSeconds", 1)?;
        let time = match query.get("sinceTime").filter(|value| !value.is_empty()) {
            Some(value) => Some(
                OffsetDateTime::parse(value, &Rfc3339)
                    .map_err(|_| wrong("sinceTime", "an RFC 3339 time", value))?,
            ),
            None => None,
        };
        let since = match (seconds, time) {
            (Some(_), Some(_)) => return Err(Error::TwoSince),
            (Some(seconds), None) => {
                let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                // Before all time is before everything.
                now.checked_sub(Duration::seconds(seconds))
            }
            (None, time) => time,
        };
        let (stdout, stderr) = match query.get("stream").unwrap_or("All") {
            "All" | "" => (true, true),
            "Stdout" => (true, false),
            "Stderr" => (false, true),
            value => return Err(wrong("stream", "All, Stdout or Stderr", value)),
        };
        let tail = match query.get("tail") {
            // Older than tailLines, and still understood.
            Some("all") => None,
            Some(_) => number(query, "tail", 0)?,
            None => number(query, "tailLines", 0)?,
        };
        if tail.is_some() && !(stdout && stderr) {
            return Err(Error::TailOfStream);
        }
        Ok(Self {
            follow: query.is_set("follow"),
            previous: query.is_set("previous"),
            since,
            timestamps: query.is_set("timestamps"),
            tail,
            limit: number(query, "limitBytes", 1)?,
            streams: Streams { stdout, stderr },
        })
    }
}

fn wrong(name: &'static str, wants: &'static str, value: &str) -> Error {
    Error::Value {
        name,
        wants,
        value: value.to_owned(),
    }
}

fn number(query: &Query, name: &'static str, least: u64) -> Result<Option<u64>, Error> {
    let Some(value) = query.get(name).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    match value.parse() {
        Ok(number) if number >= least => Ok(Some(number)),
        _ if least == 0 => Err(wrong(name, "a number, 0 or more", value)),
        _ => Err(wrong(name, "a number, 1 or more", value)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<LogOptions, Error> {
        let now = OffsetDateTime::from_unix_timestamp(1000).unwrap();
        LogOptions::parse(&Query::parse(query), now)
    }

    #[test]
    fn what_kubectl_sends_is_understood() {
        let options = parse(
            "follow=true&previous=false&sinceSeconds=10&tailLines=5&timestamps=true&limitBytes=9",
        )
        .unwrap();
        assert!(options.follow && options.timestamps && !options.previous);
        assert_eq!(options.since.unwrap().unix_timestamp(), 990);
        assert_eq!((options.tail, options.limit), (Some(5), Some(9)));
    }

    #[test]
    fn nothing_asked_for_is_everything_there_is() {
        assert_eq!(parse("").unwrap(), LogOptions::default());
    }

    #[test]
    fn a_time_is_taken_as_rfc_3339() {
        let options = parse("sinceTime=1970-01-01T00%3A10%3A00Z").unwrap();
        assert_eq!(options.since.unwrap().unix_timestamp(), 600);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for query in [
            "tailLines=-1",
            "tailLines=x",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceTime=now",
            "stream=Both",
            "sinceSeconds=1&sinceTime=1970-01-01T00:10:00Z",
            "tailLines=1&stream=Stdout",
        ] {
            assert!(parse(query).is_err(), "{query}");
        }
    }
}
