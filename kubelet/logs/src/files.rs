//! The files of one log: `0.log` and, beside it, `0.log.20060102-150405`, older ones first.
//!
//! A file is known by its inode: a rotated file keeps it, and its successor is the next in order,
//! however many rotations went by.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A file of a log, open.
#[derive(Debug)]
pub struct LogFile {
    pub file: File,
    pub inode: u64,
    /// Files between the one before and this one may have been removed.
    pub after_gap: bool,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self {
            file,
            inode,
            after_gap: false,
        })
    }
}

/// The log's files, oldest first.
pub fn list(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut prefix = name.to_string_lossy().into_owned();
    prefix.push('.');
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Compressed ones (another runtime's) can't be read here.
        if name.starts_with(&prefix) && !name.ends_with(".gz") && !name.ends_with(".tmp") {
            files.push(entry.path());
        }
    }
    files.sort();
    if log.symlink_metadata().is_ok() {
        files.push(log.to_owned());
    }
    Ok(files)
}

/// Opens all files that are there, oldest first. A rotation in between neither doubles nor loses one.
pub fn open_all(log: &Path) -> io::Result<Vec<LogFile>> {
    const ROUNDS: u32 = 10;
    let mut names = list(log)?;
    for _ in 1..ROUNDS {
        let files = open_each(&names)?;
        let now = list(log)?;
        if now == names {
            return Ok(files);
        }
        // A name may be another file's by now: each rotation makes a new one.
        names = now;
    }
    open_each(&names)
}

fn open_each(names: &[PathBuf]) -> io::Result<Vec<LogFile>> {
    let mut files: Vec<LogFile> = Vec::new();
    for path in names {
        match LogFile::open(path) {
            Ok(file) if files.iter().all(|known| known.inode != file.inode) => files.push(file),
            Ok(_) => {}
            // Renamed or removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// The files after the one with `inode`, which the caller holds open (no other has its inode then). When that file has
/// been removed, all there are, and files between may be missing.
pub fn successors(log: &Path, inode: u64) -> io::Result<Vec<LogFile>> {
    let mut files = open_all(log)?;
    match files.iter().position(|file| file.inode == inode) {
        Some(at) => Ok(files.split_off(at + 1)),
        None => {
            if let Some(oldest) = files.first_mut() {
                oldest.after_gap = true;
            }
            Ok(files)
        }
    }
}

const BLOCK: u64 = 64 * 1024;

/// Where the last `lines` lines of `file` begin, and how many lines that are. A line that is told in
/// several entries counts once. Reads backwards, no more than it must.
pub fn find_tail(file: &File, lines: u64) -> io::Result<(u64, u64)> {
    let size = file.metadata()?.len();
    // An entry begins after each newline; whether it also begins a line is for the entry before it
    // to say, whose tag is read when its own beginning is found.
    let mut found = 0;
    let mut begin = size;
    let mut position = size;
    let mut block: Vec<u8> = Vec::new();
    // The bytes from `position` on that may hold the entry just below, joined across blocks.
    let mut line: Vec<u8> = Vec::new();
    let mut is_last = true;
    while position > 0 {
        let length = position.min(BLOCK);
        block.resize(usize::try_from(length).unwrap_or_default(), 0);
        file.read_exact_at(&mut block, position - length)?;
        let mut end = block.len();
        while let Some(newline) = block[..end].iter().rposition(|byte| *byte == b'\n') {
            let mut entry = block[newline + 1..end].to_vec();
            entry.append(&mut line);
            end = newline;
            let start = position - length + newline as u64 + 1;
            if start == size {
                // After the last newline there is nothing.
                continue;
            }
            if counts(&entry, is_last) {
                if found == lines {
                    return Ok((begin, found));
                }
                found += 1;
            }
            is_last = false;
            begin = start;
        }
        let mut head = block[..end].to_vec();
        head.append(&mut line);
        line = head;
        position -= length;
    }
    if size > 0 {
        if counts(&line, is_last) {
            if found == lines {
                return Ok((begin, found));
            }
            found += 1;
        }
        begin = 0;
    }
    Ok((begin, found))
}

/// Does this entry end a line? The very last one does in any case.
fn counts(entry: &[u8], is_last: bool) -> bool {
    is_last || crate::entry::parse(entry).is_none_or(|entry| !entry.partial)
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
