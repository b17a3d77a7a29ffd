//! A log from where the caller wants it, line by line, through all rotations.
//!
//! What comes is opened each [`LOOK`] while older files are read: so a file that the logger removes in between is read all
//! the same. Only where more files come and go than are held, or between two looks, lines are lost, which is told.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::files::{self, LogFile};

/// How often new files are looked for while older ones are read.
const LOOK: Duration = Duration::from_millis(50);
/// Files held open before they are read; removed ones keep their room on the disk.
const MOST_HELD: usize = 16;
/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There may be more.
    Read,
    /// The log was rotated faster than it was read: between what came and what comes lines may be missing.
    Gap,
    /// There is no more for now.
    AtEnd,
}

/// Reads a log; blocking.
#[derive(Debug)]
pub struct Reader {
    log: PathBuf,
    tail: Option<u64>,
    follow: bool,
    started: bool,
    looked: Instant,
    /// Being read, and those known to come after it.
    current: Option<LogFile>,
    later: VecDeque<LogFile>,
    position: u64,
    /// The beginning of a line whose end isn't there yet.
    carry: Vec<u8>,
}

impl Reader {
    /// Reads the last `tail` lines, or all there are. To be followed, the log needn't be there yet.
    pub fn new(log: PathBuf, tail: Option<u64>, follow: bool) -> Self {
        Self {
            log,
            tail,
            follow,
            started: false,
            looked: Instant::now(),
            current: None,
            later: VecDeque::new(),
            position: 0,
            carry: Vec::new(),
        }
    }

    /// Fixes where the log begins: all that is written from now on is given.
    ///
    /// # Errors
    /// NotFound, if there is no log and it isn't to be followed.
    pub fn begin(&mut self) -> io::Result<()> {
        if self.started {
            return Ok(());
        }
        let files = files::open_all(&self.log)?;
        if files.is_empty() {
            // Not yet written, or gone with its folder.
            if self.follow {
                // Whatever comes is new.
                self.tail = None;
                return Ok(());
            }
            return Err(io::ErrorKind::NotFound.into());
        }
        self.started = true;
        let mut first = 0;
        if let Some(mut lines) = self.tail {
            for (at, file) in files.iter().enumerate().rev() {
                let (begin, found) = files::find_tail(&file.file, lines)?;
                (first, self.position) = (at, begin);
                lines -= found;
                if lines == 0 {
                    break;
                }
            }
        }
        self.later = files.into_iter().skip(first).collect();
        self.current = self.later.pop_front();
        Ok(())
    }

    /// One read. `accept` gets each line, without its newline; when it says false, the rest of what was read is dropped.
    pub fn step(&mut self, accept: impl FnMut(&[u8]) -> bool) -> io::Result<Step> {
        self.begin()?;
        if self.looked.elapsed() >= LOOK {
            self.look()?;
        }
        let mut buffer = vec![0; CHUNK];
        let count = self.read(&mut buffer)?;
        if count > 0 {
            self.give(&buffer[..count], accept);
            return Ok(Step::Read);
        }
        if self.later.is_empty() {
            self.look()?;
        }
        if self.later.is_empty() {
            if !self.follow {
                self.end_file(accept);
            }
            return Ok(Step::AtEnd);
        }
        // Complete since before its successor came; what came before that is read now.
        let count = self.read(&mut buffer)?;
        if count > 0 {
            self.give(&buffer[..count], accept);
            return Ok(Step::Read);
        }
        self.end_file(accept);
        self.current = self.later.pop_front();
        self.position = 0;
        Ok(match &self.current {
            Some(file) if file.after_gap => Step::Gap,
            _ => Step::Read,
        })
    }

    /// Opens the files that have come meanwhile, or fixes where the log begins: what is open is read though it be removed.
    pub fn look(&mut self) -> io::Result<()> {
        self.looked = Instant::now();
        let opened = match self.later.back().or(self.current.as_ref()) {
            None => self.begin(),
            Some(_) if self.later.len() >= MOST_HELD => Ok(()),
            Some(last) => files::successors(&self.log, last.inode).map(|it| self.later.extend(it)),
        };
        match opened {
            // The whole folder is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => opened,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(current) = &self.current else {
            return Ok(0);
        };
        let count = current.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }

    fn give(&mut self, bytes: &[u8], mut accept: impl FnMut(&[u8]) -> bool) {
        let mut rest = bytes;
        while let Some(newline) = rest.iter().position(|byte| *byte == b'\n') {
            let goes_on = if self.carry.is_empty() {
                accept(&rest[..newline])
            } else {
                self.carry.extend_from_slice(&rest[..newline]);
                let goes_on = accept(&self.carry);
                self.carry.clear();
                goes_on
            };
            rest = &rest[newline + 1..];
            if !goes_on {
                return;
            }
        }
        self.carry.extend_from_slice(rest);
    }

    /// No more comes in this file: a line without its end is all there is of it.
    fn end_file(&mut self, mut accept: impl FnMut(&[u8]) -> bool) {
        if !self.carry.is_empty() {
            accept(&std::mem::take(&mut self.carry));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::path::Path;

    use super::*;

    fn append(log: &Path, text: &str) {
        let mut options = fs::OpenOptions::new();
        let mut file = options.append(true).create(true).open(log).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rotate(log: &Path, number: u32) {
        let rotated = format!("0.log.20060102-{number:06}");
        fs::rename(log, log.with_file_name(rotated)).unwrap();
    }

    fn remove(log: &Path, number: u32) {
        fs::remove_file(log.with_file_name(format!("0.log.20060102-{number:06}"))).unwrap();
    }

    /// Lines until there is no more, and whether any are missing.
    fn all(reader: &mut Reader) -> (Vec<String>, bool) {
        let (mut lines, mut gap) = (Vec::new(), false);
        loop {
            let step = reader.step(|line| {
                lines.push(String::from_utf8(line.to_vec()).unwrap());
                true
            });
            match step.unwrap() {
                Step::AtEnd => return (lines, gap),
                step => gap |= step == Step::Gap,
            }
        }
    }

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn all_of_several_rotations_is_read_though_its_files_are_removed_once_seen() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        append(&log, "a\n");
        let mut reader = Reader::new(log.clone(), None, true);
        assert_eq!(all(&mut reader), (named(&["a"]), false));
        append(&log, "b\n");
        rotate(&log, 1);
        append(&log, "c\n");
        rotate(&log, 2);
        append(&log, "d\ne");
        reader.look().unwrap();
        fs::remove_dir_all(folder.path()).unwrap();
        assert_eq!(all(&mut reader), (named(&["b", "c", "d"]), false));
    }

    #[test]
    fn what_came_and_went_unseen_is_told_to_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        append(&log, "a\n");
        let mut reader = Reader::new(log.clone(), None, true);
        assert_eq!(all(&mut reader), (named(&["a"]), false));
        for (number, text) in [(1, "b\n"), (2, "c\n")] {
            append(&log, text);
            rotate(&log, number);
            remove(&log, number);
        }
        append(&log, "d\n");
        assert_eq!(all(&mut reader), (named(&["b", "d"]), true));
    }

    #[test]
    fn the_last_lines_are_those_of_all_files() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        for (number, text) in [(1, "a\nb\n"), (2, "c\n")] {
            append(&log, text);
            rotate(&log, number);
        }
        append(&log, "d\n");
        for (tail, lines) in [(0, &[][..]), (1, &["d"]), (3, &["b", "c", "d"])] {
            let mut reader = Reader::new(log.clone(), Some(tail), false);
            assert_eq!(all(&mut reader), (named(lines), false));
        }
        fs::remove_dir_all(folder.path()).unwrap();
        let mut reader = Reader::new(log, None, false);
        let error = reader.begin().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
