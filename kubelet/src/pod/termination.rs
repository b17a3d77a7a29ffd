//! What a container left to be read of its end: its termination message, or the end of its log.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use tracing::debug;

/// Bytes of a termination message that are shown (Kubernetes' limits).
const MAX_MESSAGE: usize = 4096;
/// Bytes and lines of the log that stand in for it.
const MAX_FALLBACK: usize = 2048;
const MAX_FALLBACK_LINES: usize = 80;
/// Bytes of the log that are looked through for them.
const MAX_LOG: u64 = 64 * 1024;

/// What the container left as its termination message, or, where it asks for that and failed, the
/// end of its log. No more is read than is shown: the container may have made the file as large as it likes.
pub fn message(message: &Path, log: &Path, fallback: bool) -> String {
    let text = readable(message, head(message, MAX_MESSAGE as u64));
    if !text.is_empty() || !fallback {
        return text;
    }
    let tail = readable(log, tail(log, MAX_LOG));
    let lines: Vec<&str> = tail
        .lines()
        .filter_map(|line| line.splitn(4, ' ').nth(3))
        .collect();
    let from = lines.len().saturating_sub(MAX_FALLBACK_LINES);
    let text = lines[from..].join("\n");
    let mut start = text.len().saturating_sub(MAX_FALLBACK);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

fn head(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn tail(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// As text. That there is none to be had leaves the message empty, as a container without one does.
fn readable(path: &Path, read: io::Result<Vec<u8>>) -> String {
    match read {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            debug!(%error, path = %path.display(), "can't read what a container left of its end");
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_message_falls_back_on_the_end_of_the_log() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (own, log) = (dir.path().join("m"), dir.path().join("l"));
        fs::write(
            &log,
            "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two\n",
        )
        .expect("log");
        assert_eq!(message(&own, &log, true), "one\ntwo");
        assert_eq!(message(&own, &log, false), "");
        fs::write(&own, "own").expect("message");
        assert_eq!(message(&own, &log, true), "own");
    }

    #[test]
    fn a_file_larger_than_memory_is_read_only_as_far_as_it_is_shown() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (own, log) = (dir.path().join("m"), dir.path().join("l"));
        for path in [&own, &log] {
            let file = File::create(path).expect("file");
            file.set_len(1 << 42).expect("sparse");
        }
        assert_eq!(message(&own, &log, false).len(), MAX_MESSAGE);
        fs::remove_file(&own).expect("removed");
        assert_eq!(message(&own, &log, true), "");
    }
}
