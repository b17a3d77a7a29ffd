//! Bytes to lines of the CRI log format: `2006-01-02T15:04:05.000000000Z stdout F text`.
//!
//! Tag F: the line is complete here; tag P: it goes on in the stream's next entry (it is longer than
//! [`MAX_CONTENT`], or the stream ended without a newline).

use std::io::Write as _;

use time::OffsetDateTime;

/// Longest text of one entry, bytes, as containerd's CRI plugin has it.
pub const MAX_CONTENT: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    Full,
    Partial,
}

/// Takes entries as they become complete.
pub trait Emit {
    fn emit(&mut self, stream: Stream, tag: Tag, content: &[u8]);
}

/// Cuts one stream into entries.
#[derive(Debug)]
pub struct Splitter {
    stream: Stream,
    /// Text without a newline yet, at most [`MAX_CONTENT`].
    pending: Vec<u8>,
}

impl Splitter {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    /// Takes what was read.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut impl Emit) {
        while !bytes.is_empty() {
            let newline = bytes.iter().position(|&byte| byte == b'\n');
            let mut text = &bytes[..newline.unwrap_or(bytes.len())];
            bytes = newline.map_or(&[], |at| &bytes[at + 1..]);
            // A text that just fits stays whole: only more text makes it partial.
            while self.pending.len() + text.len() > MAX_CONTENT {
                let (now, later) = text.split_at(MAX_CONTENT - self.pending.len());
                self.pending.extend_from_slice(now);
                out.emit(self.stream, Tag::Partial, &self.pending);
                self.pending.clear();
                text = later;
            }
            if newline.is_none() {
                self.pending.extend_from_slice(text);
            } else if self.pending.is_empty() {
                out.emit(self.stream, Tag::Full, text);
            } else {
                self.pending.extend_from_slice(text);
                out.emit(self.stream, Tag::Full, &self.pending);
                self.pending.clear();
            }
        }
    }

    /// A line has begun and not ended.
    pub fn is_within(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The stream has ended, or pauses: what is left had no newline.
    pub fn end(&mut self, out: &mut impl Emit) {
        if !self.pending.is_empty() {
            out.emit(self.stream, Tag::Partial, &self.pending);
            self.pending.clear();
        }
    }
}

/// Appends one entry to `out`.
pub fn write_entry(
    out: &mut Vec<u8>,
    at: OffsetDateTime,
    stream: Stream,
    tag: Tag,
    content: &[u8],
) {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let tag = match tag {
        Tag::Full => 'F',
        Tag::Partial => 'P',
    };
    // Writing to a Vec can't fail.
    let _ = write!(
        out,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z {stream} {tag} ",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.nanosecond(),
    );
    out.extend_from_slice(content);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Entries(Vec<(Tag, Vec<u8>)>);

    impl Emit for Entries {
        fn emit(&mut self, _: Stream, tag: Tag, content: &[u8]) {
            assert!(content.len() <= MAX_CONTENT);
            self.0.push((tag, content.to_vec()));
        }
    }

    fn split(chunks: &[&[u8]]) -> Vec<(Tag, Vec<u8>)> {
        let mut entries = Entries::default();
        let mut splitter = Splitter::new(Stream::Stdout);
        for chunk in chunks {
            splitter.feed(chunk, &mut entries);
        }
        splitter.end(&mut entries);
        entries.0
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let entries = split(&[b"on", b"e\ntw", b"o\n\n"]);
        assert_eq!(
            entries,
            [
                (Tag::Full, b"one".to_vec()),
                (Tag::Full, b"two".to_vec()),
                (Tag::Full, Vec::new()),
            ]
        );
    }

    #[test]
    fn a_rest_without_newline_is_partial() {
        assert_eq!(split(&[b"a\nb"])[1], (Tag::Partial, b"b".to_vec()));
        assert!(split(&[b""]).is_empty());
    }

    #[test]
    fn what_is_written_in_a_pause_is_not_written_again() {
        let mut entries = Entries::default();
        let mut splitter = Splitter::new(Stream::Stdout);
        splitter.feed(b"$ ", &mut entries);
        assert!(splitter.is_within());
        splitter.end(&mut entries);
        assert!(!splitter.is_within());
        splitter.feed(b"ls\n", &mut entries);
        assert_eq!(
            entries.0,
            [(Tag::Partial, b"$ ".to_vec()), (Tag::Full, b"ls".to_vec())]
        );
    }

    #[test]
    fn a_line_that_just_fits_is_one_entry_and_one_byte_more_makes_two() {
        let mut text = vec![b'x'; MAX_CONTENT];
        text.push(b'\n');
        assert_eq!(split(&[&text]).len(), 1);
        text.insert(0, b'y');
        let entries = split(&[&text]);
        assert_eq!((entries[0].0, entries[1].0), (Tag::Partial, Tag::Full));
        assert_eq!(entries[1].1, b"x");
    }

    /// A small xorshift: the cases are the same on every run.
    fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    #[test]
    fn however_the_bytes_are_cut_into_reads_the_text_comes_out_the_same() {
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        for _ in 0..200 {
            let length = random(&mut seed) % 60_000;
            let rarity = 1 + random(&mut seed) % 30_000;
            let text: Vec<u8> = (0..length)
                .map(|_| match random(&mut seed) {
                    r if r % rarity == 0 => b'\n',
                    r => b'a' + (r % 26) as u8,
                })
                .collect();
            let mut chunks: Vec<&[u8]> = Vec::new();
            let mut rest = text.as_slice();
            while !rest.is_empty() {
                let size = 1 + random(&mut seed) % 40_000;
                let (chunk, more) = rest.split_at(rest.len().min(size as usize));
                chunks.push(chunk);
                rest = more;
            }
            let entries = split(&chunks);
            assert_eq!(entries, split(&[&text]), "cut into {}", chunks.len());
            let mut joined = Vec::new();
            for (tag, content) in entries {
                joined.extend_from_slice(&content);
                if tag == Tag::Full {
                    joined.push(b'\n');
                }
            }
            assert_eq!(joined, text);
        }
    }

    #[test]
    fn an_entry_has_a_time_to_the_nanosecond_in_utc() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_136_214_245_000_000_007).unwrap();
        let mut out = Vec::new();
        write_entry(&mut out, at, Stream::Stderr, Tag::Partial, b"x y");
        assert_eq!(out, b"2006-01-02T15:04:05.000000007Z stderr P x y\n");
    }
}
