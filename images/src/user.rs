//! Who a container runs as: an image's or user's `USER[:GROUP]`, looked up in the image's own /etc/passwd and /etc/group.

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use hpk_userns::Mapped;

/// Ids of a process, numbers of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Groups the image's /etc/group lists the user in, without the primary one.
    pub additional_gids: Vec<u32>,
    /// Login name, where /etc/passwd knows the uid.
    pub name: Option<String>,
    /// Home folder from /etc/passwd, else `/`.
    pub home: String,
}

impl User {
    /// Without the additional groups that this user namespace lacks: only the image has listed the user in them.
    #[must_use]
    pub fn within(mut self, mapped: &Mapped) -> Self {
        self.additional_gids.retain(|gid| mapped.has_group(*gid));
        self
    }
}

/// Why a user could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that /etc/passwd doesn't have.
    #[error("the image's /etc/passwd has no user {0:?}")]
    UnknownUser(String),
    /// A name that /etc/group doesn't have.
    #[error("the image's /etc/group has no group {0:?}")]
    UnknownGroup(String),
    /// The file is there but can't be read.
    #[error("reading {path}")]
    Read {
        /// The file, on this machine.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Resolves `spec` (`""`, `UID`, `NAME`, `UID:GID`, `NAME:GROUP`, `:GROUP`) against the root file system at `rootfs`.
///
/// Numbers need no entry in /etc/passwd; a name does. Without a group given, the primary group is /etc/passwd's (0
/// where it has none) and the additional groups are /etc/group's, as Docker and containerd do; with one, there are
/// no additional groups. Links in the image are followed inside `rootfs` only.
pub fn resolve(rootfs: &Path, spec: &str) -> Result<User, Error> {
    let passwd = read_in_root(rootfs, "etc/passwd")?;
    let group = read_in_root(rootfs, "etc/group")?;
    resolve_in(&passwd, &group, spec)
}

/// The additional groups /etc/group at `rootfs` lists user `name` in; for a caller that has uid and gid already.
pub fn groups_of(rootfs: &Path, name: &str) -> Result<Vec<u32>, Error> {
    let group = read_in_root(rootfs, "etc/group")?;
    Ok(member_gids(&group, name))
}

fn resolve_in(passwd: &str, group: &str, spec: &str) -> Result<User, Error> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entries = || passwd.lines().filter_map(PasswdLine::parse);
    let number = user.parse::<u32>().ok();
    // A login name made of digits goes before the number, as in Docker.
    let entry = entries()
        .find(|e| e.name == user)
        .or_else(|| number.and_then(|uid| entries().find(|e| e.uid == uid)));
    let uid = match (&entry, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(Error::UnknownUser(user.to_owned())),
    };
    let (gid, additional_gids) = match wanted_group {
        Some(wanted) => (find_gid(group, wanted)?, Vec::new()),
        None => {
            let gid = entry.as_ref().map_or(0, |e| e.gid);
            let mut more = entry
                .as_ref()
                .map_or_else(Vec::new, |e| member_gids(group, e.name));
            more.retain(|g| *g != gid);
            (gid, more)
        }
    };
    Ok(User {
        uid,
        gid,
        additional_gids,
        name: entry.as_ref().map(|e| e.name.to_owned()),
        home: entry.map_or("/", |e| e.home).to_owned(),
    })
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdLine<'a> {
    /// passwd(5): `name:password:uid:gid:comment:home:shell`; lines that are none are passed over.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim_end().split(':');
        let name = fields
            .next()
            .filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|h| !h.is_empty()).unwrap_or("/");
        Some(PasswdLine {
            name,
            uid,
            gid,
            home,
        })
    }
}

/// group(5): `name:password:gid:members`.
fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim_end().split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn find_gid(group: &str, wanted: &str) -> Result<u32, Error> {
    group_lines(group)
        .find(|(name, _, _)| *name == wanted)
        .map(|(_, gid, _)| gid)
        .or_else(|| wanted.parse().ok())
        .ok_or_else(|| Error::UnknownGroup(wanted.to_owned()))
}

fn member_gids(group: &str, user: &str) -> Vec<u32> {
    group_lines(group)
        .filter(|(_, _, members)| members.split(',').any(|m| m == user))
        .map(|(_, gid, _)| gid)
        .collect()
}

/// A file of the image as text; empty where the image has none (a `scratch` image).
fn read_in_root(rootfs: &Path, file: &str) -> Result<String, Error> {
    let path = resolve_in_root(rootfs, Path::new(file));
    match read_plain(&path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(String::new())
        }
        Err(source) => Err(Error::Read { path, source }),
    }
}

/// Longest /etc/passwd or /etc/group read, bytes.
const MAX_FILE: u64 = 8 << 20;

/// Reads a plain file of an image, whoever made that: never waits (as on a FIFO's other end), never follows a link, and
/// takes no more than [`MAX_FILE`].
fn read_plain(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = fs::OpenOptions::new();
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY;
    let file = options.read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    if !metadata.is_file() {
        return refuse("it is no plain file");
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return refuse("it is longer than 8 MiB");
    }
    Ok(bytes)
}

/// `file` below `rootfs` with every symbolic link resolved as a process whose root is `rootfs` would see it.
///
/// For trees nobody changes meanwhile (an image's mount); what doesn't exist is kept as it stands. Of a running
/// container's root it may lead elsewhere if the container changes it meanwhile: so let only ids depend on it.
pub fn resolve_in_root(rootfs: &Path, file: &Path) -> PathBuf {
    // Linux' own limit on links in one path (path_resolution(7)).
    const MAX_LINKS: usize = 40;
    let mut rest: Vec<PathBuf> = parts(file);
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == Path::new("..") {
            done.pop();
            continue;
        }
        let next = done.join(&part);
        match fs::read_link(rootfs.join(&next)) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                if target.is_absolute() {
                    done = PathBuf::new();
                }
                rest.extend(parts(&target));
            }
            _ => done = next,
        }
    }
    rootfs.join(done)
}

/// A path's names and `..`s, last first.
fn parts(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir))
        .map(|c| PathBuf::from(c.as_os_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nweb:x:101:102::/var/www:/bin/false\n1000:x:7:7::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:web\nlog:x:4:syslog,web\nvideo:x:44:root\n";

    fn ids(spec: &str) -> (u32, u32, Vec<u32>) {
        let user = resolve_in(PASSWD, GROUP, spec).unwrap();
        (user.uid, user.gid, user.additional_gids)
    }

    #[test]
    fn a_passwd_that_is_no_plain_file_is_refused_without_waiting() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        fs::create_dir(&etc).unwrap();
        let passwd = etc.join("passwd");
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        nix::unistd::mkfifo(&passwd, mode).unwrap();
        let error = |spec| resolve(root.path(), spec).unwrap_err();
        assert!(matches!(error("bob"), Error::Read { .. }));
        fs::remove_file(&passwd).unwrap();
        let long = fs::File::create(&passwd).unwrap();
        long.set_len(MAX_FILE + 1).unwrap();
        assert!(matches!(error("bob"), Error::Read { .. }));
    }

    #[test]
    fn no_user_means_root() {
        assert_eq!(ids(""), (0, 0, vec![44]));
        let scratch = resolve_in("", "", "").unwrap();
        assert_eq!(
            (scratch.uid, scratch.gid, scratch.home.as_str()),
            (0, 0, "/")
        );
    }

    #[test]
    fn names_and_numbers_are_looked_up() {
        assert_eq!(ids("web"), (101, 102, vec![4]));
        assert_eq!(ids("101"), (101, 102, vec![4]));
        assert_eq!(ids("65534"), (65534, 0, vec![]));
        assert_eq!(ids("1000"), (7, 7, vec![]));
    }

    #[test]
    fn a_group_given_stands_alone() {
        assert_eq!(ids("web:log"), (101, 4, vec![]));
        assert_eq!(ids("web:9"), (101, 9, vec![]));
        assert_eq!(ids(":log"), (0, 4, vec![]));
        assert_eq!(ids("5:"), (5, 0, vec![]));
    }

    #[test]
    fn unknown_names_are_named() {
        let user = resolve_in(PASSWD, GROUP, "nobody").unwrap_err();
        assert_eq!(
            user.to_string(),
            "the image's /etc/passwd has no user \"nobody\""
        );
        let group = resolve_in(PASSWD, GROUP, "web:staff").unwrap_err();
        assert_eq!(
            group.to_string(),
            "the image's /etc/group has no group \"staff\""
        );
    }

    #[test]
    fn links_stay_inside_the_image() {
        let root = tempfile::tempdir().unwrap();
        let at = |p: &str| root.path().join(p);
        fs::create_dir_all(at("usr/etc")).unwrap();
        fs::create_dir_all(at("etc")).unwrap();
        fs::write(at("usr/etc/passwd"), "in:x:5:6::/home/in:/bin/sh\n").unwrap();
        std::os::unix::fs::symlink("/../../usr/etc/passwd", at("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        assert_eq!(resolve(root.path(), "in").unwrap().uid, 5);
        assert_eq!(resolve_in_root(root.path(), Path::new("loop")), at("loop"));
    }
}
