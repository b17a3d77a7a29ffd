//! A subtree that the site has handed to the user, in which cgroups may be made.
//!
//! The processes that are in no container are in a child of its own, [`PROCESSES`]: v2 hands
//! controllers on only from a cgroup that has no processes (cgroups(7), "no internal processes").

use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::group::{remove_child, remove_children};
use crate::hierarchies::controllers_of;
use crate::{Cgroup, Error, Hierarchy, Version, enable_controllers, has_processes, is_denied};

/// Whoever is in this child makes cgroups beside it, not below it.
pub const PROCESSES: &str = "processes";
/// What a job's part of the subtree begins with.
const PREFIX: &str = "hpk-";

/// Moves this process into the subtree `name`, on every hierarchy that has it, or else below its
/// own cgroup where that is the user's (v2); gives the controllers that can be used then. `job`
/// keeps several of the user's apart.
///
/// # Errors
/// [`Error::NotHandedOver`] if none can be entered under that name.
pub fn enter(
    hierarchies: &[Hierarchy],
    name: Option<&Path>,
    job: &str,
) -> Result<Vec<String>, Error> {
    let mut controllers = Vec::new();
    for hierarchy in hierarchies {
        let Some(base) = base(hierarchy, name) else {
            continue;
        };
        match move_into(hierarchy, &base.join(folder(job)).join(PROCESSES)) {
            Ok(()) => controllers.extend(hand_on(hierarchy, &base, job)),
            Err(error) if is_denied(&error) => {
                log::debug!(
                    "{} of {}: {error}",
                    base.display(),
                    hierarchy.mount.display()
                );
            }
            Err(source) => {
                return Err(Error::File {
                    action: "enter cgroup",
                    path: hierarchy.mount.join(base),
                    source,
                });
            }
        }
    }
    match name {
        Some(name) if controllers.is_empty() => Err(Error::NotHandedOver {
            name: name.to_owned(),
        }),
        _ => Ok(controllers),
    }
}

/// The controllers that the job's part has, once this process is in it. v2 hands them on only now:
/// before, it was in the way itself.
fn hand_on(hierarchy: &Hierarchy, base: &Path, job: &str) -> Vec<String> {
    if hierarchy.version == Version::V1 {
        return hierarchy.controllers.clone();
    }
    let base = hierarchy.mount.join(base);
    enable_controllers(&base, &controllers_of(&base));
    controllers_of(&base.join(folder(job)))
}

/// Those that [`hand_on`] will find, unless other processes are in `base`.
fn offered(hierarchy: &Hierarchy, base: &Path) -> Vec<String> {
    match hierarchy.version {
        Version::V1 => hierarchy.controllers.clone(),
        Version::V2 => controllers_of(&hierarchy.mount.join(base)),
    }
}

fn folder(job: &str) -> String {
    format!("{PREFIX}{job}")
}

/// Undoes [`enter`]: moves this process to where the job's part lies, and removes that part.
///
/// # Errors
/// If the process can't be moved.
pub fn leave(hierarchies: &[Hierarchy], name: Option<&Path>, job: &str) -> Result<(), Error> {
    for hierarchy in hierarchies {
        let Some(base) = base(hierarchy, name).map(|base| hierarchy.mount.join(base)) else {
            continue;
        };
        let part = base.join(folder(job));
        if !part.is_dir() {
            continue;
        }
        if hierarchy.version == Version::V2 && !take_back(&base, &part) {
            // It goes when it is empty: by the next job's `sweep`, or with the cgroup that it is in.
            continue;
        }
        let path = base.join("cgroup.procs");
        std::fs::write(&path, "0").map_err(|source| Error::File {
            action: "leave for cgroup",
            path,
            source,
        })?;
        remove_empty(&part);
    }
    Ok(())
}

/// Undoes [`hand_on`]: no process may go to where controllers are handed on from. False if others
/// still use what `base` hands on.
fn take_back(base: &Path, part: &Path) -> bool {
    let children = std::fs::read_dir(part).into_iter().flatten().flatten();
    for child in children.filter(|child| child.file_name() != PROCESSES) {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_child(&child.path());
        }
    }
    disable_controllers(part) && disable_controllers(base)
}

fn disable_controllers(directory: &Path) -> bool {
    let control = directory.join("cgroup.subtree_control");
    let disabled = std::fs::read_to_string(&control).and_then(|enabled| {
        let names = enabled.split_ascii_whitespace();
        let disabled: Vec<String> = names.map(|name| format!("-{name}")).collect();
        match disabled.is_empty() {
            true => Ok(()),
            false => std::fs::write(&control, disabled.join(" ")),
        }
    });
    if let Err(error) = &disabled {
        log::debug!("{} stays as it is: {error}", control.display());
    }
    disabled.is_ok()
}

/// The controllers that [`enter`] would find.
pub fn usable(hierarchies: &[Hierarchy], name: Option<&Path>) -> Vec<String> {
    let of = |h: &Hierarchy| {
        let base = base(h, name)?;
        let is_ours = access(&h.mount.join(&base), AccessFlags::W_OK).is_ok();
        is_ours.then(|| offered(h, &base))
    };
    hierarchies.iter().filter_map(of).flatten().collect()
}

/// Relative to the mount; none where there is nothing to enter.
fn base(hierarchy: &Hierarchy, name: Option<&Path>) -> Option<PathBuf> {
    if let Some(name) = name {
        let relative = name.strip_prefix("/").unwrap_or(name);
        return hierarchy
            .mount
            .join(relative)
            .is_dir()
            .then(|| relative.to_owned());
    }
    // Whoever has entered is in a job's part already.
    let in_part = hierarchy
        .own
        .file_name()
        .is_some_and(|last| last.to_string_lossy().starts_with(PREFIX));
    let own = match hierarchy.own.parent() {
        Some(parent) if in_part => parent,
        _ => &hierarchy.own,
    };
    let control = hierarchy.mount.join(own).join("cgroup.subtree_control");
    let is_ours = access(&control, AccessFlags::W_OK).is_ok();
    (hierarchy.version == Version::V2 && is_ours).then(|| own.to_owned())
}

/// Another of the user's jobs may sweep what has no process yet: then it is made again.
fn move_into(hierarchy: &Hierarchy, path: &Path) -> io::Result<()> {
    let mut tries = 5;
    loop {
        let moved = Cgroup::default()
            .make_below(hierarchy, path)
            // The number 0 stands for the writer.
            .and_then(|directory| std::fs::write(directory.join("cgroup.procs"), "0"));
        tries -= 1;
        match moved {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries > 0 => {}
            other => return other,
        }
    }
}

/// Removes what jobs that have ended left in the subtree `name`: those without a process.
///
/// # Errors
/// If the subtree can't be read.
pub fn sweep(hierarchies: &[Hierarchy], name: &Path) -> io::Result<()> {
    for hierarchy in hierarchies {
        let Some(base) = base(hierarchy, Some(name)) else {
            continue;
        };
        for entry in std::fs::read_dir(hierarchy.mount.join(base))? {
            let entry = entry?;
            let job = entry.path();
            let is_jobs = entry.file_name().to_string_lossy().starts_with(PREFIX);
            if is_jobs && !has_processes(&job.join(PROCESSES)) {
                remove_empty(&job);
            }
        }
    }
    Ok(())
}

/// Best effort: what is in use refuses to go.
fn remove_empty(directory: &Path) {
    remove_children(directory);
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::debug!("{} stays: {error}", directory.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(mount: &Path) -> Hierarchy {
        Hierarchy {
            version: Version::V1,
            controllers: vec!["memory".into()],
            mount: mount.to_owned(),
            own: PathBuf::new(),
        }
    }

    #[test]
    fn the_process_goes_into_a_child_of_what_was_handed_over() {
        let mount = tempfile::tempdir().unwrap();
        std::fs::create_dir(mount.path().join("hpc")).unwrap();
        let all = [hierarchy(mount.path())];
        let controllers = enter(&all, Some(Path::new("/hpc")), "7").unwrap();
        assert_eq!(controllers, ["memory"]);
        let procs = mount.path().join("hpc/hpk-7/processes/cgroup.procs");
        assert_eq!(std::fs::read_to_string(procs).unwrap(), "0");
    }

    #[test]
    fn who_leaves_takes_the_jobs_part_along() {
        let mount = tempfile::tempdir().unwrap();
        let part = mount.path().join("hpc/hpk-7");
        std::fs::create_dir_all(part.join("processes")).unwrap();
        std::fs::create_dir_all(part.join("kubepods/pod1")).unwrap();
        leave(&[hierarchy(mount.path())], Some(Path::new("hpc")), "7").unwrap();
        assert!(!part.exists() && mount.path().join("hpc").exists());
    }

    #[test]
    fn a_name_that_nobody_handed_over_is_an_error_that_says_it() {
        let mount = tempfile::tempdir().unwrap();
        let error = enter(&[hierarchy(mount.path())], Some(Path::new("none")), "7").unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }

    #[test]
    fn without_a_name_nothing_of_v1_is_entered() {
        let mount = tempfile::tempdir().unwrap();
        let entered = enter(&[hierarchy(mount.path())], None, "7").unwrap();
        assert!(entered.is_empty());
    }

    /// A task's cgroup that its user was given, and the job's part of it, as a kernel would fill them.
    fn task(mount: &Path) -> Hierarchy {
        let part = mount.join("task_0/hpk-7");
        std::fs::create_dir_all(part.join("processes")).unwrap();
        for (file, text) in [
            ("task_0/cgroup.procs", ""),
            ("task_0/cgroup.controllers", "cpu memory\n"),
            ("task_0/cgroup.subtree_control", "cpu memory\n"),
            ("task_0/hpk-7/cgroup.controllers", "cpu memory\n"),
            ("task_0/hpk-7/cgroup.subtree_control", "cpu memory\n"),
        ] {
            std::fs::write(mount.join(file), text).unwrap();
        }
        Hierarchy {
            version: Version::V2,
            controllers: vec!["pids".into()],
            own: "task_0".into(),
            ..hierarchy(mount)
        }
    }

    fn read(mount: &Path, file: &str) -> String {
        std::fs::read_to_string(mount.join(file)).unwrap()
    }

    #[test]
    fn a_task_s_cgroup_hands_its_own_controllers_on() {
        let mount = tempfile::tempdir().unwrap();
        let all = [task(mount.path())];
        assert_eq!(usable(&all, None), ["cpu", "memory"]);
        assert_eq!(enter(&all, None, "7").unwrap(), ["cpu", "memory"]);
        let of = |file| read(mount.path(), file);
        assert_eq!(of("task_0/hpk-7/processes/cgroup.procs"), "0");
        // A plain file keeps the last of what was written.
        assert_eq!(of("task_0/cgroup.subtree_control"), "+memory");
    }

    #[test]
    fn who_leaves_takes_the_controllers_back_first() {
        let mount = tempfile::tempdir().unwrap();
        let all = [task(mount.path())];
        std::fs::create_dir_all(mount.path().join("task_0/hpk-7/kubepods/pod1")).unwrap();
        leave(&all, None, "7").unwrap();
        let of = |file| read(mount.path(), file);
        assert!(!mount.path().join("task_0/hpk-7/kubepods").exists());
        assert_eq!(of("task_0/hpk-7/cgroup.subtree_control"), "-cpu -memory");
        assert_eq!(of("task_0/cgroup.subtree_control"), "-cpu -memory");
        assert_eq!(of("task_0/cgroup.procs"), "0");
    }

    #[test]
    fn what_ended_jobs_left_is_swept_and_nothing_else() {
        let mount = tempfile::tempdir().unwrap();
        let at = |path: &str| mount.path().join("hpc").join(path);
        std::fs::create_dir_all(at("hpk-1/kubepods/pod1/c1")).unwrap();
        std::fs::create_dir_all(at("hpk-2/processes")).unwrap();
        std::fs::write(at("hpk-2/processes/cgroup.procs"), "17\n").unwrap();
        std::fs::create_dir_all(at("hpk-2/kubepods")).unwrap();
        std::fs::create_dir_all(at("mine")).unwrap();
        sweep(&[hierarchy(mount.path())], Path::new("hpc")).unwrap();
        assert!(!at("hpk-1").exists());
        assert!(at("hpk-2/kubepods").exists() && at("mine").exists());
    }
}
