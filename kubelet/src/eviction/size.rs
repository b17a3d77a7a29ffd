//! How much lies below a folder. A pod decides how deep its folders are: the walk goes by descriptors, of which it has two at a
//! time, and by no path that could become too long.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::ops::Add;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;
use rustix::path::Arg;

/// What files take of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Of their blocks.
    pub bytes: u64,
    pub inodes: u64,
}

impl Add for Size {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }
}

/// A folder on the way down.
#[derive(Debug)]
struct Level {
    name: CString,
    id: (u64, u64),
    /// Folders in it that are still to be entered.
    left: Vec<CString>,
}

#[derive(Debug)]
struct Walk {
    device: u64,
    /// Inodes of several names that were counted.
    counted: HashSet<u64>,
    size: Size,
}

/// What lies below `root` and it itself, other file systems left out; what goes meanwhile counts for nothing.
///
/// # Errors
/// If a folder that is there can't be read.
pub fn size(root: &Path) -> io::Result<Size> {
    let Some(mut folder) = open(CWD, root)? else {
        return Ok(Size::default());
    };
    let top = fstat(&folder)?;
    let mut walk = Walk {
        device: top.st_dev,
        counted: HashSet::new(),
        size: Size::default(),
    };
    walk.count(&top);
    let mut levels = vec![walk.enter(CString::default(), &folder, &top)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.left.pop() {
            let Some(below) = open(&folder, &name)? else {
                continue;
            };
            let stat = fstat(&below)?;
            if stat.st_dev == walk.device {
                levels.push(walk.enter(name, &below, &stat)?);
                folder = below;
            }
            continue;
        }
        levels.pop();
        let Some(above) = levels.last() else {
            break;
        };
        folder = match open(&folder, c"..")? {
            Some(up) if id(&fstat(&up)?) == above.id => up,
            // It was moved meanwhile.
            _ => match again(root, &mut levels)? {
                Some(folder) => folder,
                None => break,
            },
        };
    }
    Ok(walk.size)
}

impl Walk {
    fn count(&mut self, stat: &Stat) {
        let is_folder = FileType::from_raw_mode(stat.st_mode).is_dir();
        if !is_folder && stat.st_nlink > 1 && !self.counted.insert(stat.st_ino) {
            return;
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        self.size = self.size
            + Size {
                bytes: blocks.saturating_mul(512),
                inodes: 1,
            };
    }

    /// Counts what is in a folder.
    fn enter(&mut self, name: CString, folder: &OwnedFd, of: &Stat) -> io::Result<Level> {
        let mut left = Vec::new();
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            if stat.st_dev != self.device {
                continue;
            }
            self.count(&stat);
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                left.push(name.to_owned());
            }
        }
        Ok(Level {
            name,
            id: id(of),
            left,
        })
    }
}

/// The folder that `levels` lead to; those that aren't there any more are taken from it.
fn again(root: &Path, levels: &mut Vec<Level>) -> io::Result<Option<OwnedFd>> {
    let Some(mut folder) = open(CWD, root)? else {
        return Ok(None);
    };
    for at in 1..levels.len() {
        match open(&folder, &levels[at].name)? {
            Some(below) => {
                levels[at].id = id(&fstat(&below)?);
                folder = below;
            }
            None => {
                levels.truncate(at);
                break;
            }
        }
    }
    Ok(Some(folder))
}

/// None if it has gone, or is no folder any more.
fn open(at: impl AsFd, name: impl Arg) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(at, name, flags, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_of_two_names_counts_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir(dir.path().join("d")).expect("made");
        let file = dir.path().join("d/f");
        fs::write(&file, vec![1; 64 << 10]).expect("written");
        let before = size(dir.path()).expect("read");
        assert!(before.bytes >= 64 << 10, "{before:?}");
        assert_eq!(before.inodes, 3);
        fs::hard_link(&file, dir.path().join("g")).expect("linked");
        let after = size(dir.path()).expect("read");
        assert!(
            after.bytes < before.bytes + (32 << 10),
            "{before:?} {after:?}"
        );
        assert_eq!(after.inodes, 3);
        let none = size(&dir.path().join("none")).expect("nothing");
        assert_eq!(none, Size::default());
    }

    /// Twenty folders in one another, of 250 bytes each, are deeper than a path may be long.
    #[test]
    fn folders_deeper_than_any_path_are_counted_with_those_beside_them() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut folder = open(CWD, dir.path()).expect("opened").expect("there");
        for beside in ["a", "z"] {
            fs::create_dir(dir.path().join(beside)).expect("made");
        }
        let name = "n".repeat(250);
        for _ in 0..20 {
            rustix::fs::mkdirat(&folder, &name, Mode::RWXU).expect("made");
            folder = open(&folder, &name).expect("opened").expect("there");
        }
        assert_eq!(size(dir.path()).expect("read").inodes, 23);
    }

    #[test]
    fn the_way_down_is_found_again_as_far_as_it_is_there() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir_all(dir.path().join("a/b")).expect("made");
        let level = |name: &str| Level {
            name: CString::new(name).expect("a name"),
            id: (0, 0),
            left: Vec::new(),
        };
        let mut levels = vec![level(""), level("a"), level("gone"), level("c")];
        let folder = again(dir.path(), &mut levels)
            .expect("read")
            .expect("there");
        assert_eq!(levels.len(), 2);
        assert_eq!(levels[1].id, id(&fstat(&folder).expect("read")));
        assert!(open(&folder, "b").expect("opened").is_some());
    }
}
