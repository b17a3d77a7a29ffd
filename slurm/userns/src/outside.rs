//! What a user may map into a new user namespace.
//!
//! With a range in both /etc/subuid and /etc/subgid, and the set-uid programs that map it: root to
//! the user, and the rest to the range. Without: root to the user, and nothing else (single-id mode),
//! which takes no help of anybody (user_namespaces(7)).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User, getgid, getuid};

/// First id and how many.
pub type Range = (u32, u32);

/// The ids beside its own that a user may give away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    pub users: Range,
    pub groups: Range,
    pub newuidmap: PathBuf,
    pub newgidmap: PathBuf,
}

/// What a namespace of this user can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    Subordinate(Ranges),
    /// The user itself, as root; `why` says what there is no range for or no program to map it.
    Single {
        why: String,
    },
}

/// Why ids can't be looked up or mapped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading {path}")]
    Read {
        path: &'static str,
        source: io::Error,
    },
    #[error("running {}", program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error("{}: {said}", program.display())]
    Refused { program: PathBuf, said: String },
    #[error("writing {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Ids {
    /// This user's; the programs that map ranges are looked for along `path` (as $PATH).
    ///
    /// # Errors
    /// [`Error::Read`], where /etc/subuid or /etc/subgid is there and can't be read.
    pub fn of_this_user(path: &str) -> Result<Self, Error> {
        let user = user_name();
        let range = |file| match fs::read_to_string(file) {
            Ok(text) => Ok(find(&text, &user, getuid())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path: file, source }),
        };
        let single = |why| Ok(Self::Single { why });
        let Some(users) = range("/etc/subuid")? else {
            return single(format!("user {user} has no range in /etc/subuid"));
        };
        let Some(groups) = range("/etc/subgid")? else {
            return single(format!("user {user} has no range in /etc/subgid"));
        };
        match (program("newuidmap", path), program("newgidmap", path)) {
            (Some(newuidmap), Some(newgidmap)) => Ok(Self::Subordinate(Ranges {
                users,
                groups,
                newuidmap,
                newgidmap,
            })),
            _ => single("newuidmap or newgidmap is not installed".to_owned()),
        }
    }

    /// Maps them in the user namespace of the process `pid`, which has made it and mapped nothing.
    ///
    /// # Errors
    /// What the kernel or the programs refused.
    pub fn map(&self, pid: u32) -> Result<(), Error> {
        let (user, group) = (getuid().as_raw(), getgid().as_raw());
        match self {
            Self::Subordinate(ranges) => {
                run(&ranges.newuidmap, pid, user, ranges.users)?;
                run(&ranges.newgidmap, pid, group, ranges.groups)
            }
            Self::Single { .. } => {
                // Else a group that denies something could be left: the kernel takes no gid_map before.
                write(pid, "setgroups", "deny")?;
                write(pid, "uid_map", &format!("0 {user} 1"))?;
                write(pid, "gid_map", &format!("0 {group} 1"))
            }
        }
    }
}

/// This user's login name; that of a directory service's user, who isn't in /etc/passwd, is $USER.
#[must_use]
pub fn user_name() -> String {
    let known = User::from_uid(getuid()).ok().flatten();
    known
        .map(|user| user.name)
        .or_else(|| std::env::var("USER").ok())
        .unwrap_or_else(|| getuid().to_string())
}

/// The user's first range; subuid(5): `NAME-OR-ID:FIRST:COUNT`.
fn find(text: &str, user: &str, id: Uid) -> Option<Range> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let range = (
            fields.next()?.trim().parse().ok()?,
            fields.next()?.trim().parse().ok()?,
        );
        (owner == user || owner == id.to_string()).then_some(range)
    })
}

fn program(name: &str, path: &str) -> Option<PathBuf> {
    path.split(':')
        .filter(|folder| !folder.is_empty())
        .map(|folder| Path::new(folder).join(name))
        .find(|file| file.is_file())
}

fn run(program: &Path, pid: u32, own: u32, range: Range) -> Result<(), Error> {
    let numbers = [0, own, 1, 1, range.0, range.1].map(|number| number.to_string());
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers)
        .output()
        .map_err(|source| Error::Run {
            program: program.to_owned(),
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Refused {
        program: program.to_owned(),
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn write(pid: u32, file: &str, text: &str) -> Result<(), Error> {
    let path = PathBuf::from(format!("/proc/{pid}/{file}"));
    fs::write(&path, text).map_err(|source| Error::Write { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_user_or_its_number() {
        let text = "eve:100000:65536\n\nbroken\nhpc:x:1\nhpc:165536:65536\n1007:9:8\n";
        let find = |user, id| find(text, user, Uid::from_raw(id));
        assert_eq!(find("hpc", 1000), Some((165_536, 65_536)));
        assert_eq!(find("other", 1007), Some((9, 8)));
        assert_eq!(find("nobody", 3), None);
    }

    #[test]
    fn a_program_is_looked_for_along_the_path_only() {
        let folder = std::env::current_exe().unwrap();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let folder = folder.parent().unwrap().display().to_string();
        assert!(program(&name, &format!("/nonexistent::{folder}")).is_some());
        assert_eq!(program(&name, "/nonexistent:"), None);
    }
}
