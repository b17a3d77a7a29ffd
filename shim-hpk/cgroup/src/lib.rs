//! Cgroups of containers and pods, where the hierarchies let this process make one.
//!
//! A cgroup is made at the path that is asked for (under root's containerd that always works), or
//! else at that path below this process's own (a subtree that the site hands to the user). Whether
//! it could be is found out per hierarchy, with the limits asked for: a limit without a place to
//! write it to is reported by its name, everything else that fails is an error.
//!
//! Layout:
//! - [`hierarchies`] – what is mounted here. [`limits`] – which value goes into which file.
//! - [`delegated`] – the subtree that is the user's. [`group`] – a pod's, around those of its containers.
//! - [`freezer`] – Pause and Resume. [`oom`] – who tells of a kill for lack of memory.
//! - [`error`]

pub mod delegated;
pub mod error;
pub mod freezer;
pub mod group;
pub mod hierarchies;
pub mod limits;
pub mod oom;

use std::{
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use oci_spec::runtime::LinuxResources;

pub use error::Error;
pub use hierarchies::{Hierarchy, Version};

/// A zombie holds its cgroup until it is reaped, and the kernel empties one behind the scenes.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);
const REMOVE_POLL: Duration = Duration::from_millis(2);

/// Where a cgroup shall be, and its limits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// Relative to each hierarchy's mount.
    pub path: PathBuf,
    pub resources: LinuxResources,
}

/// One container's directories.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroup {
    directories: Vec<Directory>,
    /// All that were made, a parent before its children.
    made: Vec<PathBuf>,
}

/// One directory for a container to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Where below /sys/fs/cgroup (v1); v2's is that itself.
    pub name: Option<String>,
    pub path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Directory {
    /// The hierarchy's mount point's, such as `cpu,cpuacct`.
    name: String,
    version: Version,
    controllers: Vec<String>,
    path: PathBuf,
}

/// The path a spec asks for. systemd's form `slice:prefix:name` becomes where systemd would put it.
///
/// # Errors
/// [`Error::Invalid`] for one that leads out of the hierarchy.
pub fn path(asked: Option<&Path>, id: &str) -> Result<PathBuf, Error> {
    let Some(asked) = asked.filter(|p| !p.as_os_str().is_empty()) else {
        return Ok(Path::new("hpk").join(id));
    };
    let text = asked.to_string_lossy();
    let parts: Vec<&str> = text.split(':').collect();
    let path = match parts.as_slice() {
        [slice, prefix, name] if !text.starts_with('/') => {
            let mut path = PathBuf::new();
            let stem = slice.strip_suffix(".slice").unwrap_or(slice);
            for (n, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
                path.push(format!("{}.slice", &stem[..n]));
            }
            path.join(format!("{prefix}-{name}.scope"))
        }
        _ => Path::new(text.trim_start_matches('/')).to_owned(),
    };
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
    if path.as_os_str().is_empty() || !path.components().all(plain) || text.contains('\0') {
        return Err(Error::Invalid {
            field: "linux.cgroupsPath".into(),
            why: format!("{text:?} names no cgroup"),
        });
    }
    Ok(path)
}

impl Cgroup {
    /// Makes the cgroup and sets its limits; gives what was asked for and can't be had.
    ///
    /// # Errors
    /// A value the kernel refuses, or a cgroup somebody else is in. Nothing is left then.
    pub fn make(
        hierarchies: &[Hierarchy],
        request: &Request,
    ) -> Result<(Self, Vec<String>), Error> {
        let mut cgroup = Self::default();
        match cgroup.fill(hierarchies, request) {
            Ok(warnings) => Ok((cgroup, warnings)),
            Err(e) => {
                // No process was ever in it.
                if let Err(e) = try_remove(&cgroup.made) {
                    log::warn!("a cgroup is left: {e}");
                }
                Err(e)
            }
        }
    }

    fn fill(&mut self, hierarchies: &[Hierarchy], request: &Request) -> Result<Vec<String>, Error> {
        for hierarchy in hierarchies {
            match self.make_directory(hierarchy, &request.path) {
                Ok(path) => self.directories.push(Directory {
                    name: hierarchy
                        .mount
                        .file_name()
                        .unwrap_or_default()
                        .to_string_lossy()
                        .into_owned(),
                    version: hierarchy.version,
                    controllers: hierarchy.controllers.clone(),
                    path,
                }),
                Err(e) if is_denied(&e) => {
                    log::debug!("no cgroup for {}: {e}", hierarchy.controllers.join(","));
                }
                Err(source) => {
                    return Err(Error::File {
                        action: "make cgroup",
                        path: hierarchy.mount.join(&request.path),
                        source,
                    });
                }
            }
        }
        let version = hierarchies.first().map_or(Version::V2, |h| h.version);
        self.limit(version, &request.resources)
    }

    fn make_directory(&mut self, hierarchy: &Hierarchy, path: &Path) -> io::Result<PathBuf> {
        match self.try_directory(hierarchy, path) {
            Err(e) if is_denied(&e) => self.try_directory(hierarchy, &hierarchy.own.join(path)),
            other => other,
        }
    }

    fn try_directory(&mut self, hierarchy: &Hierarchy, path: &Path) -> io::Result<PathBuf> {
        let before = self.made.len();
        let empty = self.make_below(hierarchy, path).and_then(|directory| {
            if std::fs::read_to_string(directory.join("cgroup.procs"))?.is_empty() {
                return Ok(directory);
            }
            let why = "processes are in it";
            Err(io::Error::new(io::ErrorKind::AlreadyExists, why))
        });
        if empty.is_err()
            && let Err(e) = try_remove(&self.made.split_off(before))
        {
            log::debug!("a cgroup is left: {e}");
        }
        empty
    }

    fn make_below(&mut self, hierarchy: &Hierarchy, path: &Path) -> io::Result<PathBuf> {
        let mut directory = hierarchy.mount.clone();
        for component in path.components() {
            let parent = directory.clone();
            directory.push(component);
            if hierarchy.version == Version::V2 {
                enable_controllers(&parent, &hierarchy.controllers);
            }
            match std::fs::create_dir(&directory) {
                Ok(()) => {
                    self.made.push(directory.clone());
                    // The maker's umask would hide it from the container's own user.
                    std::fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
            if hierarchy.controllers.iter().any(|c| c == "cpuset")
                && hierarchy.version == Version::V1
            {
                inherit_cpuset(&parent, &directory)?;
            }
        }
        Ok(directory)
    }

    /// Sets limits; gives what can't be had.
    pub fn limit(
        &self,
        version: Version,
        resources: &LinuxResources,
    ) -> Result<Vec<String>, Error> {
        let mut warnings: Vec<String> = Vec::new();
        let mut again = Vec::new();
        for write in limits::plan(version, resources)? {
            let Some(directory) = self.of(write.controller) else {
                // Who can't make a cgroup can't make device nodes either.
                if write.controller != "devices" {
                    warnings.push(format!(
                        "{} is not enforced: no cgroup of the controller {} may be made here",
                        write.field, write.controller
                    ));
                }
                continue;
            };
            let path = directory.join(&write.file);
            match std::fs::write(&path, &write.value) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound || is_denied(&e) => {
                    if write.controller != "devices" {
                        warnings.push(format!(
                            "{} is not enforced: write {}: {e}",
                            write.field,
                            path.display()
                        ));
                    }
                }
                // A limit may have to wait for the next one: memory for memory with swap, when both rise.
                Err(e) => again.push((write, path, e)),
            }
        }
        for (write, path, first) in again {
            if std::fs::write(&path, &write.value).is_err() {
                return Err(Error::Invalid {
                    field: write.field,
                    why: format!("{} refuses {:?}: {first}", path.display(), write.value),
                });
            }
        }
        warnings.dedup();
        Ok(warnings)
    }

    /// Moves a process in; what it starts from now on is in too. A hierarchy that refuses is left
    /// out from now on, and named.
    pub fn add(&mut self, pid: i32) -> Vec<String> {
        let mut warnings = Vec::new();
        self.directories.retain(|directory| {
            let moved = std::fs::write(directory.path.join("cgroup.procs"), pid.to_string());
            if let Err(e) = &moved {
                warnings.push(format!(
                    "no limit of {} is enforced: move a process to {}: {e}",
                    directory.controllers.join(","),
                    directory.path.display()
                ));
            }
            moved.is_ok()
        });
        warnings
    }

    /// Moves one more process in.
    pub fn join(&self, pid: i32) -> Result<(), Error> {
        for directory in &self.directories {
            let path = directory.path.join("cgroup.procs");
            std::fs::write(&path, pid.to_string()).map_err(|source| Error::File {
                action: "move a process to",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// The directory with a controller's files.
    pub fn of(&self, controller: &str) -> Option<&Path> {
        self.directories
            .iter()
            .find(|d| {
                d.controllers.iter().any(|c| c == controller)
                    || (d.version == Version::V2 && controller == "cgroup")
            })
            .map(|d| d.path.as_path())
    }

    /// The interface its files have; `None` for a cgroup that could not be made anywhere.
    pub fn version(&self) -> Option<Version> {
        self.directories.first().map(|d| d.version)
    }

    /// What a container that mounts cgroups sees: its own directories, by its hierarchies' names.
    pub fn views(&self) -> Vec<View> {
        let view = |d: &Directory| View {
            name: (d.version == Version::V1).then(|| d.name.clone()),
            path: d.path.clone(),
        };
        self.directories.iter().map(view).collect()
    }

    /// All directories made, for the record.
    pub fn made(&self) -> &[PathBuf] {
        &self.made
    }

    /// Removes it; its processes must have ended, though the kernel may still be at it.
    pub async fn remove(&self) {
        let removed = tokio::time::timeout(REMOVE_LIMIT, async {
            while try_remove(&self.made).is_err() {
                tokio::time::sleep(REMOVE_POLL).await;
            }
        });
        if removed.await.is_err() {
            log::warn!("a cgroup is left: {:?}", self.made);
        }
    }
}

/// The innermost of `made`: a container's own directories.
pub fn leaves(made: &[PathBuf]) -> impl Iterator<Item = &PathBuf> {
    let is_leaf = |p: &Path| !made.iter().any(|q| q != p && q.starts_with(p));
    made.iter().filter(move |p| is_leaf(p))
}

/// Removes what a cgroup's making made. A parent that another container uses by now stays.
///
/// # Errors
/// If a container's own directory is still in use.
pub fn try_remove(made: &[PathBuf]) -> io::Result<()> {
    for leaf in leaves(made) {
        match std::fs::remove_dir(leaf) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    for parent in made.iter().rev() {
        // EBUSY: somebody else's by now.
        let _ = std::fs::remove_dir(parent);
    }
    Ok(())
}

fn is_denied(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ENOENT)
    )
}

/// A parent's controllers are its children's only once enabled. Best effort: what isn't enabled then
/// has no file, which shows when a limit is to be written. Not where processes are: of cpu and cpuset
/// the kernel would take it, and then let no process into what is below ("domain invalid", cgroups(7)).
fn enable_controllers(directory: &Path, controllers: &[String]) {
    // The root of all has no type, and may do both.
    if directory.join("cgroup.type").exists() && has_processes(directory) {
        log::debug!("{} hands nothing on: it has processes", directory.display());
        return;
    }
    for controller in controllers {
        let enabled = std::fs::write(
            directory.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
        if let Err(e) = enabled {
            log::debug!("enable {controller} in {}: {e}", directory.display());
        }
    }
}

fn has_processes(directory: &Path) -> bool {
    std::fs::read_to_string(directory.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty())
}

/// A v1 cpuset takes no process before it has processors and memory nodes.
fn inherit_cpuset(parent: &Path, directory: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = std::fs::read_to_string(directory.join(file))?;
        if own.trim().is_empty() {
            let inherited = std::fs::read_to_string(parent.join(file))?;
            std::fs::write(directory.join(file), inherited.trim())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod v2_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_lies_where_the_spec_says() {
        let at = |asked: &str| path(Some(Path::new(asked)), "c1").unwrap();
        assert_eq!(at("/default/c1"), Path::new("default/c1"));
        assert_eq!(
            at("kubepods-pod7.slice:cri-containerd:c1"),
            Path::new("kubepods.slice/kubepods-pod7.slice/cri-containerd-c1.scope")
        );
        assert_eq!(path(None, "c1").unwrap(), Path::new("hpk/c1"));
    }

    #[test]
    fn a_path_out_of_the_hierarchy_is_refused() {
        for asked in ["/", "../x", "/a/../../b"] {
            let error = path(Some(Path::new(asked)), "c1").unwrap_err().to_string();
            assert!(error.contains("names no cgroup"), "{asked}: {error}");
        }
    }

    /// A plain directory behaves as a hierarchy that has no interface file but what is put there.
    fn hierarchy(mount: &Path) -> Hierarchy {
        Hierarchy {
            version: Version::V1,
            controllers: vec!["memory".into()],
            mount: mount.to_owned(),
            own: "own".into(),
        }
    }

    fn request(limit: i64) -> Request {
        Request {
            path: "default/c1".into(),
            resources: serde_json::from_value(serde_json::json!({"memory": {"limit": limit}}))
                .unwrap(),
        }
    }

    #[test]
    fn a_limit_without_a_hierarchy_is_named() {
        let (cgroup, warnings) = Cgroup::make(&[], &request(1)).unwrap();
        assert_eq!(cgroup.version(), None);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("linux.resources.memory.limit is not enforced"));
    }

    #[test]
    fn of_a_hierarchy_that_can_not_be_used_nothing_is_left() {
        let mount = tempfile::tempdir().unwrap();
        // In a plain directory no cgroup.procs appears.
        std::fs::create_dir(mount.path().join("default")).unwrap();
        let (cgroup, warnings) = Cgroup::make(&[hierarchy(mount.path())], &request(1)).unwrap();
        assert_eq!((cgroup.version(), warnings.len()), (None, 1));
        assert!(!mount.path().join("default/c1").exists());
        assert!(!mount.path().join("own").exists());
        assert!(mount.path().join("default").exists());
    }

    #[test]
    fn a_cgroup_with_processes_of_somebody_else_is_refused() {
        let mount = tempfile::tempdir().unwrap();
        let theirs = mount.path().join("default/c1");
        std::fs::create_dir_all(&theirs).unwrap();
        std::fs::write(theirs.join("cgroup.procs"), "1\n").unwrap();
        let error = Cgroup::make(&[hierarchy(mount.path())], &request(1)).unwrap_err();
        assert!(error.to_string().contains("processes are in it"), "{error}");
        assert!(theirs.exists());
    }
}
