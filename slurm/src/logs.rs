//! Logs of daemons and helpers: opened, and what they said last.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Characters of a line that are repeated elsewhere.
const LINE: usize = 300;
/// How clap's lines begin that stand behind the one that says what is wrong.
const HINTS: [&str; 3] = ["For more information, try", "Usage: ", "tip: "];

/// Opens a log to write at its end, 0600.
pub fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// The end of a file, at most so many bytes; empty when it can't be read.
pub fn tail(path: &Path, bytes: u64) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(content)
    };
    read()
        .map(|content| String::from_utf8_lossy(&content).into_owned())
        .unwrap_or_default()
}

/// The last lines of a program's complaints, as one line.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !HINTS.iter().any(|hint| line.starts_with(hint)))
        .map(|line| line.chars().take(LINE).collect())
        .collect();
    lines[lines.len().saturating_sub(count)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_last_words_are_the_last_lines_that_say_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        open_log(&path).unwrap().write_all(b"one\ntwo\n\n").unwrap();
        open_log(&path).unwrap().write_all(b"three\n \n").unwrap();
        assert_eq!(last_lines(&tail(&path, 4096), 2), "two; three");
        let refused = "error: unexpected argument '--x' found\n\n  tip: a similar one\n\n\
                       Usage: hpk-kubelet [OPTIONS]\n\nFor more information, try '--help'.\n";
        assert_eq!(
            last_lines(refused, 1),
            "error: unexpected argument '--x' found"
        );
        assert_eq!(tail(&path, 3), "\n \n");
        assert_eq!(tail(&dir.path().join("none"), 3), "");
    }
}
