//! Entries to the text that the caller gets. No I/O.

use bytes::Bytes;
use hpk_logs::{Entry, Stream, entry};
use time::OffsetDateTime;

use super::options::LogOptions;

/// Text by stream, in order; neighbours of one stream are joined.
pub type Pieces = Vec<(Stream, Bytes)>;

#[derive(Debug)]
pub struct Filter {
    options: LogOptions,
    /// Bytes that may still be given; `None`: any number.
    left: Option<u64>,
    /// Streams within a line: no time is put before its further entries.
    within: [bool; 2],
    out: Vec<(Stream, Vec<u8>)>,
}

impl Filter {
    pub fn new(options: &LogOptions) -> Self {
        Self {
            options: options.clone(),
            left: options.limit,
            within: [false; 2],
            out: Vec::new(),
        }
    }

    /// No more may be given.
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Takes a line of the file, without its newline. Lines of another format are dropped, as the
    /// stock kubelet does.
    pub fn accept(&mut self, line: &[u8]) {
        match entry::parse(line) {
            Some(entry) => self.accept_entry(&entry),
            None => tracing::debug!("a log has a line that is not in CRI format"),
        }
    }

    fn accept_entry(&mut self, entry: &Entry<'_>) {
        let is_wanted = match entry.stream {
            Stream::Stdout => self.options.streams.stdout,
            Stream::Stderr => self.options.streams.stderr,
        };
        if !is_wanted || self.options.since.is_some_and(|since| entry.time < since) {
            return;
        }
        let within = &mut self.within[entry.stream as usize];
        let starts = !std::mem::replace(within, entry.partial);
        if self.options.timestamps && starts {
            self.put(entry.stream, format_time(entry.time).as_bytes());
        }
        self.put(entry.stream, entry.text);
        if !entry.partial {
            self.put(entry.stream, b"\n");
        }
    }

    fn put(&mut self, stream: Stream, mut text: &[u8]) {
        if let Some(left) = &mut self.left {
            let most = usize::try_from(*left).unwrap_or(usize::MAX);
            text = &text[..text.len().min(most)];
            *left -= text.len() as u64;
        }
        match self.out.last_mut() {
            Some((last, piece)) if *last == stream => piece.extend_from_slice(text),
            _ if text.is_empty() => {}
            _ => self.out.push((stream, text.to_vec())),
        }
    }

    /// What has come out since the last call.
    pub fn take(&mut self) -> Pieces {
        let out = std::mem::take(&mut self.out);
        out.into_iter()
            .map(|(stream, piece)| (stream, Bytes::from(piece)))
            .collect()
    }
}

/// RFC 3339 with nine digits, as the stock kubelet prints it, and a space.
fn format_time(time: OffsetDateTime) -> String {
    let (hours, minutes, _) = time.offset().as_hms();
    let zone = if time.offset().is_utc() {
        "Z".to_owned()
    } else {
        let sign = if time.offset().is_negative() {
            '-'
        } else {
            '+'
        };
        format!("{sign}{:02}:{:02}", hours.abs(), minutes.abs())
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}{zone} ",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.nanosecond()
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::options::Streams;
    use super::*;

    const LOG: &[&str] = &[
        "2016-10-06T00:17:01Z stdout F one",
        "2016-10-06T00:17:02.5Z stderr P tw",
        "noise",
        "2016-10-06T00:17:03Z stderr F o",
        "2016-10-06T00:17:04+02:00 stdout P last",
    ];

    fn text(options: LogOptions) -> String {
        let mut filter = Filter::new(&options);
        for line in LOG {
            filter.accept(line.as_bytes());
        }
        let pieces = filter.take();
        pieces
            .iter()
            .map(|(_, piece)| std::str::from_utf8(piece).unwrap())
            .collect()
    }

    #[test]
    fn partial_entries_are_joined_and_get_one_time() {
        assert_eq!(text(LogOptions::default()), "one\ntwo\nlast");
        let options = LogOptions {
            timestamps: true,
            ..LogOptions::default()
        };
        assert_eq!(
            text(options),
            "2016-10-06T00:17:01.000000000Z one\n\
             2016-10-06T00:17:02.500000000Z two\n\
             2016-10-06T00:17:04.000000000+02:00 last"
        );
    }

    #[test]
    fn one_stream_alone() {
        let options = LogOptions {
            streams: Streams {
                stdout: false,
                stderr: true,
            },
            ..LogOptions::default()
        };
        assert_eq!(text(options), "two\n");
    }

    #[test]
    fn nothing_older_than_asked_for() {
        let since = OffsetDateTime::from_unix_timestamp(1_475_713_022).unwrap();
        let options = LogOptions {
            since: Some(since),
            ..LogOptions::default()
        };
        assert_eq!(text(options), "two\n");
    }

    #[test]
    fn no_more_bytes_than_asked_for() {
        for limit in 1..12 {
            let options = LogOptions {
                limit: Some(limit),
                ..LogOptions::default()
            };
            assert_eq!(text(options), "one\ntwo\nlast"[..limit as usize]);
        }
    }
}
