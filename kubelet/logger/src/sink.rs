//! The log file: whole entries appended, rotated by size, and what happens when it can't be written.
//!
//! Rotation is the kubelet's: `0.log` becomes `0.log.20060102-150405`, a new `0.log` is made, the
//! oldest are removed. (Not compressed: it would cost more memory than the whole rest.) It happens
//! between lines, not within a line of several entries, unless that line is itself beyond the limit.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use crate::config::Config;
use crate::lines::{Emit, Stream, Tag, write_entry};

/// What could not be written.
#[derive(Debug, Default)]
struct Dropped {
    entries: u64,
    bytes: u64,
    why: String,
}

/// The log file.
#[derive(Debug)]
pub struct Sink {
    config: Config,
    file: Option<File>,
    /// Bytes of whole entries in `file`.
    size: u64,
    /// Entries not yet written.
    batch: Vec<u8>,
    batch_entries: u64,
    /// Streams whose last entry was partial: rotating would cut their line in two.
    within: [bool; 2],
    dropped: Dropped,
}

impl Emit for Sink {
    fn emit(&mut self, stream: Stream, tag: Tag, content: &[u8]) {
        let start = self.batch.len();
        write_entry(
            &mut self.batch,
            OffsetDateTime::now_utc(),
            stream,
            tag,
            content,
        );
        self.batch_entries += 1;
        let max = self.config.max_size;
        let total = self.size + self.batch.len() as u64;
        let between_lines = self.within == [false; 2];
        if max > 0 && total > max && (between_lines || total > 2 * max) {
            // This entry is the first of the next file.
            let entry = self.batch.split_off(start);
            self.batch_entries -= 1;
            self.flush();
            if self.size > 0 {
                self.rotate();
            }
            self.batch = entry;
            self.batch_entries = 1;
        }
        self.within[stream as usize] = tag == Tag::Partial;
    }
}

impl Sink {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            file: None,
            size: 0,
            batch: Vec::new(),
            batch_entries: 0,
            within: [false; 2],
            dropped: Dropped::default(),
        }
    }

    /// Opens the file; one that can't be opened is tried again at each batch.
    pub fn open(&mut self) {
        match open(&self.config.path) {
            Ok((file, size)) => {
                self.file = Some(file);
                self.size = size;
            }
            Err(error) => self.dropped.why = error.to_string(),
        }
    }

    /// Writes what has been emitted, or drops and counts it.
    pub fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.file.is_none() {
            self.open();
        }
        self.tell_what_was_dropped();
        let batch = std::mem::take(&mut self.batch);
        if self.dropped.entries > 0 || !self.append(&batch) {
            // Order is kept: nothing goes in before the marker does.
            self.dropped.entries += self.batch_entries;
            self.dropped.bytes += batch.len() as u64;
        }
        self.batch_entries = 0;
        self.batch = batch;
        self.batch.clear();
    }

    /// Says a last time what is missing, if anything is.
    pub fn finish(&mut self) {
        self.flush();
        self.tell_what_was_dropped();
    }

    fn tell_what_was_dropped(&mut self) {
        if self.dropped.entries == 0 {
            return;
        }
        let text = format!(
            "hpk-logger: {} lines ({} bytes) were dropped: {}",
            self.dropped.entries, self.dropped.bytes, self.dropped.why
        );
        let mut marker = Vec::new();
        let now = OffsetDateTime::now_utc();
        write_entry(&mut marker, now, Stream::Stderr, Tag::Full, text.as_bytes());
        if self.append(&marker) {
            self.dropped = Dropped::default();
        }
    }

    /// Appends all or nothing.
    fn append(&mut self, bytes: &[u8]) -> bool {
        let Some(file) = self.file.as_mut() else {
            return false;
        };
        match file.write_all(bytes) {
            Ok(()) => {
                self.size += bytes.len() as u64;
                true
            }
            Err(error) => {
                self.dropped.why = error.to_string();
                // A torn entry would swallow the next one. Where cutting fails too, open anew.
                if file.set_len(self.size).is_err() {
                    self.file = None;
                }
                false
            }
        }
    }

    fn rotate(&mut self) {
        let path = &self.config.path;
        let mut all = match rotated(path) {
            Ok(all) => all,
            // Nothing to rotate: the open below fails as well.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                eprintln!(
                    "hpk-logger: can't list the logs of {}: {error}",
                    path.display()
                );
                return;
            }
        };
        let name = rotated_name(path, &all, OffsetDateTime::now_utc());
        match fs::rename(path, &name) {
            Ok(()) => all.push(name),
            // Gone from under us: the open below makes a new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                eprintln!("hpk-logger: can't rename {}: {error}", path.display());
                return;
            }
        }
        self.file = None;
        self.size = 0;
        if let Err(error) = prune(&all, self.config.max_files - 1) {
            eprintln!(
                "hpk-logger: can't remove old logs of {}: {error}",
                path.display()
            );
        }
        self.open();
    }
}

/// The file, for its owner alone, ending in a whole line; and its size. Its folder is others': one that was removed
/// must not come back.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let mut size = file.metadata()?.len();
    if size > 0 && !ends_in_newline(path, size)? {
        file.write_all(b"\n")?;
        size += 1;
    }
    Ok((file, size))
}

fn ends_in_newline(path: &Path, size: u64) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut last = [0];
    File::open(path)?.read_exact_at(&mut last, size - 1)?;
    Ok(last == *b"\n")
}

/// `0.log.20060102-150405`, sorted behind all `rotated` ones: with a number behind it where there was one in this second, or,
/// the clock having been set back, in a later one.
fn rotated_name(path: &Path, rotated: &[PathBuf], now: OffsetDateTime) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(
        ".{:04}{:02}{:02}-{:02}{:02}{:02}",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    ));
    let name = PathBuf::from(name);
    let Some(newest) = rotated.last().filter(|newest| **newest >= name) else {
        return name;
    };
    let newest = newest.to_string_lossy();
    let time = name.as_os_str().len();
    let number = newest.get(time + 1..).and_then(|it| it.parse::<u32>().ok());
    let number = number.unwrap_or(0).saturating_add(1);
    PathBuf::from(format!(
        "{}-{number:06}",
        newest.get(..time).unwrap_or(&newest)
    ))
}

/// The rotated files, oldest first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let mut prefix = name.to_string_lossy().into_owned();
    prefix.push('.');
    let mut rotated = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            rotated.push(entry.path());
        }
    }
    rotated.sort();
    Ok(rotated)
}

/// Removes all but the newest `keep` of them.
fn prune(rotated: &[PathBuf], keep: usize) -> io::Result<()> {
    let many = rotated.len().saturating_sub(keep);
    for old in &rotated[..many] {
        fs::remove_file(old)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
