//! One line of a log file: `2006-01-02T15:04:05.999999999Z07:00 stdout F text`.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    pub time: OffsetDateTime,
    pub stream: Stream,
    /// The line goes on in the stream's next entry.
    pub partial: bool,
    pub text: &'a [u8],
}

/// Reads a line, given without its newline. `None`: not a line of this format.
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let (time, rest) = split(line)?;
    let (stream, rest) = split(rest)?;
    // A tag is always followed by a space, even before an empty text.
    let (tags, text) = split(rest)?;
    let time = std::str::from_utf8(time).ok()?;
    Some(Entry {
        time: OffsetDateTime::parse(time, &Rfc3339).ok()?,
        stream: match stream {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        },
        // More tags may follow, after colons.
        partial: tags.split(|byte| *byte == b':').next() == Some(b"P"),
        text,
    })
}

fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = text.iter().position(|byte| *byte == b' ')?;
    Some((&text[..space], &text[space + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_any_runtime_are_understood() {
        let entry = parse(b"2016-10-06T00:17:09.669794202Z stdout P one  two").unwrap();
        assert_eq!(entry.stream, Stream::Stdout);
        assert!(entry.partial);
        assert_eq!(entry.text, b"one  two");
        let entry = parse(b"2016-10-06T00:17:09+02:00 stderr F:x ").unwrap();
        assert_eq!(entry.stream, Stream::Stderr);
        assert!(!entry.partial);
        assert_eq!(entry.text, b"");
        assert_eq!(entry.time.unix_timestamp(), 1_475_705_829);
    }

    #[test]
    fn other_lines_are_not() {
        for line in [
            &b""[..],
            b"hello",
            b"2016-10-06T00:17:09Z stdout",
            b"2016-10-06T00:17:09Z stdout F",
            b"2016-10-06T00:17:09Z stdlog F x",
            b"yesterday stdout F x",
        ] {
            assert_eq!(parse(line), None);
        }
    }
}
