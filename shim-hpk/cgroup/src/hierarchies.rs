//! The cgroup hierarchies that are mounted here, where this process is in each, and the memory that it may have there.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::delegated::PROCESSES;

/// Which interface files a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub version: Version,
    /// Names as in the mount's options (v1; `name=systemd` among them) or in `cgroup.controllers` of
    /// this process's cgroup (v2).
    pub controllers: Vec<String>,
    pub mount: PathBuf,
    /// This process's cgroup, relative to the mount; of one that was handed over, the whole.
    pub own: PathBuf,
}

/// What this machine has: the v1 hierarchies if a controller is on one, else the v2 one. (On a hybrid
/// machine the v2 tree has next to none.)
pub fn probe() -> std::io::Result<Vec<Hierarchy>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let own = std::fs::read_to_string("/proc/self/cgroup")?;
    let mut found = choose(parse(&mounts, &own));
    found.retain_mut(|h| h.version == Version::V1 || read_controllers(h));
    Ok(found)
}

/// Controllers of those in which this process may make a cgroup.
pub fn usable(hierarchies: &[Hierarchy]) -> Vec<String> {
    let is_writable = |h: &&Hierarchy| {
        let places = [h.mount.clone(), h.mount.join(&h.own)];
        places.iter().any(|d| access(d, AccessFlags::W_OK).is_ok())
    };
    let usable = hierarchies.iter().filter(is_writable);
    usable.flat_map(|h| h.controllers.iter().cloned()).collect()
}

/// The memory in bytes that this process's cgroup and those around it leave it; none where none has a limit.
pub fn memory_limit(hierarchies: &[Hierarchy]) -> std::io::Result<Option<u64>> {
    let mut least = None;
    for hierarchy in hierarchies {
        let file = match hierarchy.version {
            Version::V2 => "memory.max",
            Version::V1 if hierarchy.controllers.iter().any(|c| c == "memory") => {
                "memory.limit_in_bytes"
            }
            Version::V1 => continue,
        };
        for ancestor in hierarchy.own.ancestors() {
            match std::fs::read_to_string(hierarchy.mount.join(ancestor).join(file)) {
                // "max" of v2 is no number; v1 has one that no machine has.
                Ok(text) => least = least.into_iter().chain(text.trim().parse().ok()).min(),
                // A root has none, nor a cgroup that isn't handed the controller; and what a site hides it doesn't tell.
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(least)
}

/// What a cgroup of v2 may hand on: its cgroup.controllers, none if that can't be read.
pub(crate) fn controllers_of(directory: &Path) -> Vec<String> {
    let names = std::fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    names.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Whether the v2 tree can be seen; its mount may lie under another one.
fn read_controllers(hierarchy: &mut Hierarchy) -> bool {
    let path = hierarchy
        .mount
        .join(&hierarchy.own)
        .join("cgroup.controllers");
    let read = std::fs::read_to_string(path);
    if let Ok(names) = &read {
        hierarchy.controllers = names.split_ascii_whitespace().map(str::to_owned).collect();
    }
    read.is_ok()
}

fn choose(all: Vec<Hierarchy>) -> Vec<Hierarchy> {
    let is_v1 = |h: &Hierarchy| h.version == Version::V1;
    let has_controller = |h: &Hierarchy| h.controllers.iter().any(|c| !c.starts_with("name="));
    let version = if all.iter().any(|h| is_v1(h) && has_controller(h)) {
        Version::V1
    } else {
        Version::V2
    };
    let mut chosen: Vec<Hierarchy> = Vec::new();
    for hierarchy in all.into_iter().filter(|h| h.version == version) {
        // Mounted again, and perhaps over the former: the last one is the one to be seen.
        chosen.retain(|h| h.controllers != hierarchy.controllers);
        chosen.push(hierarchy);
    }
    chosen
}

/// From /proc/self/mountinfo (proc(5)) and /proc/self/cgroup (cgroups(7)).
fn parse(mounts: &str, own: &str) -> Vec<Hierarchy> {
    mounts
        .lines()
        .filter_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            let front: Vec<&str> = front.split(' ').collect();
            let back: Vec<&str> = back.split(' ').collect();
            let version = match *back.first()? {
                "cgroup" => Version::V1,
                "cgroup2" => Version::V2,
                _ => return None,
            };
            let controllers = match version {
                Version::V1 => v1_controllers(back.get(2)?),
                Version::V2 => Vec::new(),
            };
            let root = unescape(front.get(3)?);
            let own = own_path(own, &controllers)?;
            Some(Hierarchy {
                version,
                mount: PathBuf::from(unescape(front.get(4)?)),
                // In a mount of a part of the hierarchy that isn't ours, ours can't be named.
                own: Path::new(own)
                    .strip_prefix(&root)
                    .map_or(PathBuf::new(), whole),
                controllers,
            })
        })
        .collect()
}

/// Beside a cgroup that has only processes there is room for others.
fn whole(own: &Path) -> PathBuf {
    let parent = own.parent().filter(|_| own.ends_with(PROCESSES));
    parent.unwrap_or(own).to_owned()
}

/// The options that name a v1 hierarchy, out of all of its superblock's.
fn v1_controllers(options: &str) -> Vec<String> {
    const OTHERS: [&str; 6] = ["rw", "ro", "xattr", "clone_children", "noprefix", "none"];
    options
        .split(',')
        .filter(|o| !OTHERS.contains(o) && !o.starts_with("release_agent="))
        .map(str::to_owned)
        .collect()
}

fn own_path<'a>(own: &'a str, controllers: &[String]) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
        let matches = match controllers.first() {
            Some(first) => names.split(',').any(|n| n == first),
            None => names.is_empty(),
        };
        matches.then_some(path)
    })
}

/// mountinfo writes space, tab, newline and backslash as octal.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n")]
        .iter()
        .fold(text.to_owned(), |t, (from, to)| t.replace(from, to))
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
30 24 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 /job5 /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct,clone_children
";
    const OWN: &str = "5:cpu,cpuacct:/a\n4:memory:/job5/step1\n2:name=systemd:/\n0::/u\n";

    #[test]
    fn v1_hierarchies_come_before_a_v2_tree_beside_them() {
        let found = choose(parse(V1, OWN));
        let names: Vec<_> = found.iter().map(|h| h.controllers.join(",")).collect();
        assert_eq!(names, ["name=systemd", "memory", "cpu,cpuacct"]);
        assert_eq!(found[1].mount, Path::new("/sys/fs/cgroup/my memory"));
    }

    #[test]
    fn ones_own_cgroup_is_relative_to_what_is_mounted() {
        let found = choose(parse(V1, OWN));
        assert_eq!(found[1].own, Path::new("step1"));
        assert_eq!(found[2].own, Path::new("a"));
    }

    #[test]
    fn without_controllers_on_v1_the_v2_tree_counts() {
        let v2 = "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = choose(parse(v2, "0::/user.slice\n"));
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].version, found[0].own.as_path()),
            (Version::V2, Path::new("user.slice"))
        );
    }

    #[test]
    fn the_least_limit_of_memory_on_the_way_up_counts() {
        let mount = tempfile::tempdir().unwrap();
        let limit = |place: &str, file: &str, text: &str| {
            std::fs::create_dir_all(mount.path().join(place)).unwrap();
            std::fs::write(mount.path().join(place).join(file), text).unwrap();
        };
        let of = |version, controllers: &[&str], own: &str| {
            let hierarchy = Hierarchy {
                version,
                controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
                mount: mount.path().to_owned(),
                own: own.into(),
            };
            memory_limit(&[hierarchy]).unwrap()
        };
        limit("job/step", "memory.max", "max\n");
        assert_eq!(of(Version::V2, &[], "job/step"), None);
        limit("job", "memory.max", "4096\n");
        assert_eq!(of(Version::V2, &[], "job/step"), Some(4096));
        limit("job", "memory.limit_in_bytes", "512\n");
        limit("", "memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(of(Version::V1, &["memory"], "job/step"), Some(512));
        assert_eq!(of(Version::V1, &["cpu"], "job/step"), None);
    }

    #[test]
    fn a_machine_without_cgroups_has_no_hierarchy() {
        assert_eq!(choose(parse("1 0 0:1 / / rw - ext4 /dev/a rw\n", "")), []);
    }
}
