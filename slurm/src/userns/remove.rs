//! Removing a folder whose files belong to subordinate ids, or whose owner has closed folders to itself.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, anyhow};
use hpk_userns::Ids;

use super::judge;
use crate::{apptainer, attempts, own_path, settings};

/// Removes `dir`, with the help of a user namespace where it takes one. Another may be at it, too.
pub fn tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => return Ok(()),
        Err(_) if is_gone(dir) => return Ok(()),
        Err(_) => {} // files of others: tried again below, where its error counts
    }
    let emptied = match judge(run_task(dir)) {
        Ok(()) => Ok(()),
        // Also where it has got into a namespace: on Ubuntu, a program without a profile has no rights in its own.
        Err(own) => {
            let task = ["empty", &dir.to_string_lossy()];
            judge(apptainer::run_task(&task, dir))
                .map_err(|other| anyhow!("in a user namespace: {own}; in Apptainer's: {other}"))
        }
    };
    match emptied.and_then(|()| Ok(fs::remove_dir(dir)?)) {
        Err(_) if is_gone(dir) => Ok(()),
        removed => removed.with_context(|| format!("removing {}", dir.display())),
    }
}

fn is_gone(path: &Path) -> bool {
    let there = path.symlink_metadata();
    there.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn run_task(dir: &Path) -> Result<Output> {
    let ids = Ids::of_this_user(&settings::search_path())?;
    let mut child = Command::new(own_path()?)
        .args(["in-userns", "empty"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the remover")?;
    let pid = child.id();
    let ready = child.stdout.take().map(|output| {
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)
    });
    // Without a word from it, it has failed, and says why.
    let mapped = match ready {
        Some(Ok(bytes)) if bytes > 0 => ids.map(pid).context("mapping the remover's ids"),
        _ => Ok(()),
    };
    if let Some(mut input) = child.stdin.take() {
        // A remover that has failed already says so by its exit code.
        let _ = input.write_all(b"go");
    }
    let output = child.wait_with_output().context("awaiting the remover")?;
    mapped.map(|()| output)
}

/// The child's: removes what is in `dir`.
pub(super) fn empty(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    attempts::all(entries.map(|entry| {
        let entry = entry.with_context(|| format!("reading {}", dir.display()))?;
        let path = entry.path();
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(_) if is_gone(&path) => Ok(()),
            removed => removed.with_context(|| format!("removing {}", path.display())),
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_in_a_folder_goes_and_what_links_lead_to_stays() {
        let root = tempfile::tempdir().unwrap();
        let (dir, kept) = (root.path().join("dir"), root.path().join("kept"));
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        fs::write(dir.join("a/b/file"), "").unwrap();
        fs::write(dir.join("file"), "").unwrap();
        symlink(&kept, dir.join("link")).unwrap();
        empty(&dir).unwrap();
        assert!(!is_gone(&dir));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        assert!(kept.join("file").exists());
        tree(&dir).unwrap();
        assert!(is_gone(&dir));
        tree(&dir).unwrap();
    }
}
