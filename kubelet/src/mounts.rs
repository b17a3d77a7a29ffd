//! What is mounted: asked of the kernel, and undone below a folder before it is removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// Whether something is mounted exactly on `path`.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(mount_points()?.iter().any(|point| point == path))
}

/// Unmounts everything on or below `root`, the last mounted first. One that can't be unmounted by
/// itself, such as one that came locked to the mount it lies in, may go with that.
pub fn unmount_below(root: &Path) -> io::Result<()> {
    let mut failed = None;
    for point in mount_points()?.iter().rev() {
        if point.starts_with(root)
            && let Err(errno) = umount2(point, MntFlags::MNT_DETACH)
        {
            failed = Some(io::Error::from(errno));
        }
    }
    match failed {
        Some(error) if mount_points()?.iter().any(|point| point.starts_with(root)) => Err(error),
        _ => Ok(()),
    }
}

/// Unmounts below `root`, then removes it with all content. One that is gone is fine.
pub fn remove_tree(root: &Path) -> io::Result<()> {
    if fs::symlink_metadata(root).is_err() {
        return Ok(());
    }
    unmount_below(root)?;
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn mount_points() -> io::Result<Vec<PathBuf>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// The fifth field of each line, octal escapes undone (proc(5)).
fn parse(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .collect()
}

fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(position) = rest.find('\\') {
        out.push_str(&rest[..position]);
        let code = rest.get(position + 1..position + 4);
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[position + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[position + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_spaces_are_undone() {
        let line = "36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw\n";
        assert_eq!(parse(line), [PathBuf::from("/mnt/a b")]);
    }
}
