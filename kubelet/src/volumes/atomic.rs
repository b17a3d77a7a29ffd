//! Writing a set of files so that a reader sees all of the old or all of the new.
//!
//! The files live in a fresh `..TIME` folder; `..data` is a symlink to it that is replaced by
//! rename; what the user sees are symlinks into `..data`. Containers that have the volume bound
//! see the change because only the symlink moves. Source: Kubernetes, pkg/volume/util/atomic_writer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use super::payload::File;

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";

#[derive(Debug, Error)]
pub enum Error {
    #[error("path {0:?} leaves the volume")]
    Escapes(String),
    #[error("can't {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

/// Makes `target` hold exactly `files`; true if something changed. `finish` sees the new folder
/// before it becomes visible (ownership).
pub fn write(
    target: &Path,
    files: &BTreeMap<String, File>,
    finish: &dyn Fn(&Path) -> io::Result<()>,
) -> Result<bool, Error> {
    for path in files.keys() {
        validate(path)?;
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    ensure_folder(target)?;
    let data = target.join(DATA);
    let old = fs::read_link(&data).ok();
    if let Some(old) = &old
        && same(&target.join(old), files)
    {
        return Ok(false);
    }
    let fresh = fresh_dir(target)?;
    let folder = target.join(&fresh);
    for (path, file) in files {
        write_file(&folder, path, file)?;
    }
    finish(&folder).map_err(io_error("set the owner of", &folder))?;
    let next = target.join(NEXT);
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &next)(error));
        }
        _ => {}
    }
    symlink(&fresh, &next).map_err(io_error("link", &next))?;
    fs::rename(&next, &data).map_err(io_error("replace", &data))?;
    link_visible(target, files)?;
    remove_stale(target, files, &fresh)?;
    Ok(true)
}

fn validate(path: &str) -> Result<(), Error> {
    let fine = !path.is_empty()
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        && !path.starts_with("..");
    if fine {
        Ok(())
    } else {
        Err(Error::Escapes(path.to_owned()))
    }
}

fn fresh_dir(target: &Path) -> Result<String, Error> {
    let now = k8s_openapi::jiff::Timestamp::now();
    let name = format!("..{}", now.as_nanosecond());
    let path = target.join(&name);
    ensure_folder(&path)?;
    Ok(name)
}

/// A folder that the pod's users may enter, whatever the kubelet's umask.
fn ensure_folder(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .map_err(io_error("set the mode of", path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io_error("create", path)(error)),
    }
}

fn write_file(folder: &Path, relative: &str, file: &File) -> Result<(), Error> {
    let mut path = folder.to_owned();
    for part in Path::new(relative).components() {
        ensure_folder(&path)?;
        path.push(part);
    }
    // 0600 from birth: the final mode is set once the content is in.
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("create", &path))?;
    out.write_all(&file.data)
        .map_err(io_error("write", &path))?;
    if let Some(owner) = file.owner {
        fchown(&out, Some(owner), None).map_err(io_error("set the owner of", &path))?;
    }
    out.set_permissions(fs::Permissions::from_mode(file.mode))
        .map_err(io_error("set the mode of", &path))
}

fn first_parts(files: &BTreeMap<String, File>) -> BTreeSet<&str> {
    files
        .keys()
        .filter_map(|path| path.split('/').next())
        .collect()
}

fn link_visible(target: &Path, files: &BTreeMap<String, File>) -> Result<(), Error> {
    for part in first_parts(files) {
        let visible = target.join(part);
        if fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new(DATA).join(part), &visible).map_err(io_error("link", &visible))?;
        }
    }
    Ok(())
}

fn remove_stale(target: &Path, files: &BTreeMap<String, File>, fresh: &str) -> Result<(), Error> {
    let keep = first_parts(files);
    for entry in fs::read_dir(target).map_err(io_error("list", target))? {
        let entry = entry.map_err(io_error("list", target))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if keep.contains(name.as_ref()) || name == DATA || name == fresh {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(io_error("remove", &path))?;
    }
    Ok(())
}

/// Whether the folder holds exactly these files with this content.
fn same(folder: &Path, files: &BTreeMap<String, File>) -> bool {
    count_files(folder).is_ok_and(|count| count == files.len())
        && files
            .iter()
            .all(|(path, file)| fs::read(folder.join(path)).is_ok_and(|data| data == file.data))
}

fn count_files(folder: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() {
            count_files(&entry.path())?
        } else {
            1
        };
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(of: &[(&str, &str)]) -> BTreeMap<String, File> {
        of.iter()
            .map(|(path, data)| {
                let file = File {
                    data: data.as_bytes().to_vec(),
                    mode: 0o644,
                    owner: None,
                };
                ((*path).to_owned(), file)
            })
            .collect()
    }

    fn nothing(_: &Path) -> io::Result<()> {
        Ok(())
    }

    #[test]
    fn an_update_replaces_removes_and_adds_files() {
        let dir = tempfile::tempdir().expect("tempdir");
        let target = dir.path().join("v");
        assert!(write(&target, &files(&[("a", "1"), ("d/b", "2")]), &nothing).expect("written"));
        assert_eq!(fs::read_to_string(target.join("d/b")).expect("d/b"), "2");
        assert!(write(&target, &files(&[("a", "3"), ("c", "4")]), &nothing).expect("written"));
        assert_eq!(fs::read_to_string(target.join("a")).expect("a"), "3");
        assert_eq!(fs::read_to_string(target.join("c")).expect("c"), "4");
        assert!(fs::symlink_metadata(target.join("d")).is_err());
    }

    #[test]
    fn every_folder_can_be_entered_by_all_and_files_have_their_modes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let target = dir.path().join("v");
        // The job's (slurm/hpk.slurm); tests beside this one must bear it as well.
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        write(&target, &files(&[("d/e/f", "1")]), &nothing).expect("written");
        let mode = |path: &str| {
            let meta = fs::metadata(target.join(path)).expect(path);
            meta.permissions().mode() & 0o7777
        };
        for folder in ["", "..data", "d", "d/e"] {
            assert_eq!(mode(folder), 0o755, "{folder:?}");
        }
        assert_eq!(mode("d/e/f"), 0o644);
    }

    #[test]
    fn the_same_content_is_not_written_again() {
        let dir = tempfile::tempdir().expect("tempdir");
        let target = dir.path().join("v");
        assert!(write(&target, &files(&[("a", "1")]), &nothing).expect("written"));
        assert!(!write(&target, &files(&[("a", "1")]), &nothing).expect("written"));
    }

    #[test]
    fn a_path_out_of_the_volume_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let refused = write(dir.path(), &files(&[("../x", "1")]), &nothing);
        assert!(matches!(refused, Err(Error::Escapes(_))));
    }
}
