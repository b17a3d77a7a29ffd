//! Subordinate ids: what Apptainer's `--fakeroot` gives a container, too.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, bail};
use nix::unistd::{Gid, Pid, Uid, User};

/// First id and how many.
type Range = (u32, u32);

/// The user's ranges of users and groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubordinateIds {
    users: Range,
    groups: Range,
}

impl SubordinateIds {
    pub fn of_this_user() -> anyhow::Result<Self> {
        let uid = Uid::current();
        let name = User::from_uid(uid)
            .context("looking up this user")?
            .map(|user| user.name)
            .unwrap_or_default();
        let read = |path: &str| {
            let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
            find(&text, &name, uid.as_raw()).with_context(|| {
                format!("{path} has no line for {name:?}: a container needs subordinate ids")
            })
        };
        Ok(Self {
            users: read("/etc/subuid")?,
            groups: read("/etc/subgid")?,
        })
    }

    /// Maps 0 to the user and the rest to the ranges, in the user namespace of `pid`.
    pub fn map(&self, pid: Pid) -> anyhow::Result<()> {
        let (uid, gid) = (Uid::current().as_raw(), Gid::current().as_raw());
        map("newuidmap", pid, uid, self.users)?;
        map("newgidmap", pid, gid, self.groups)
    }
}

fn map(program: &str, pid: Pid, own: u32, range: Range) -> anyhow::Result<()> {
    let numbers = [0, own, 1, 1, range.0, range.1].map(|number| number.to_string());
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers)
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// subuid(5): `NAME-OR-ID:FIRST:COUNT`.
fn find(text: &str, name: &str, id: u32) -> Option<Range> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let range = (
            fields.next()?.parse().ok()?,
            fields.next()?.trim().parse().ok()?,
        );
        (owner == name || owner == id.to_string()).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_user_or_its_number() {
        let text = "eve:100000:65536\n\nbroken\nhpc:x:1\nhpc:165536:65536\n1007:9:8\n";
        assert_eq!(find(text, "hpc", 1000), Some((165_536, 65_536)));
        assert_eq!(find(text, "other", 1007), Some((9, 8)));
        assert_eq!(find(text, "nobody", 3), None);
    }
}
