//! Which user and group ids there are: in a user namespace those that are mapped. A site without
//! subordinate ids maps a single one, root.

use hpk_pause::wire;

use crate::error::Error;

/// Annotation of a container that may run as root where its user isn't mapped: `"true"`.
pub const SQUASH: &str = "io.hpk.squash-ids";

/// Ranges of ids, first and count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    users: Vec<(u32, u32)>,
    groups: Vec<(u32, u32)>,
}

impl Mapped {
    /// Those of this process.
    pub fn here() -> Result<Self, Error> {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .map(|text| ranges(&text))
                .map_err(Error::system(format!("read {path}")))
        };
        Ok(Self {
            users: read("/proc/self/uid_map")?,
            groups: read("/proc/self/gid_map")?,
        })
    }

    /// All there are, as outside any user namespace.
    #[cfg(test)]
    pub fn all() -> Self {
        let all = vec![(0, u32::MAX)];
        Self {
            users: all.clone(),
            groups: all,
        }
    }

    /// Lets a process have its ids, or with `squash` root's in their place; gives what was changed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the id.
    pub fn check(&self, process: &mut wire::Process, squash: bool) -> Result<Vec<String>, Error> {
        let mut changed = Vec::new();
        let mut ask = |field: String, id: &mut u32, ranges: &[(u32, u32)]| {
            if ranges
                .iter()
                .any(|&(first, count)| *id >= first && *id - first < count)
            {
                return Ok(());
            }
            if !squash {
                return Err(Error::Unsupported {
                    field: format!("{field} {id}"),
                    why: "the id is not mapped in this user namespace (is there a range for the user in /etc/subuid and /etc/subgid?)",
                });
            }
            changed.push(format!(
                "{field} {id} is not mapped here: it is root's instead"
            ));
            *id = 0;
            Ok(())
        };
        ask("process.user.uid".into(), &mut process.uid, &self.users)?;
        ask("process.user.gid".into(), &mut process.gid, &self.groups)?;
        for group in &mut process.groups {
            ask("process.user.additionalGids".into(), group, &self.groups)?;
        }
        if !changed.is_empty() {
            process.groups.retain(|&g| g != 0);
        }
        Ok(changed)
    }
}

/// Lines `inside outside count` of user_namespaces(7).
fn ranges(text: &str) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let first = fields.next()?.parse().ok()?;
            Some((first, fields.nth(1)?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single() -> Mapped {
        Mapped {
            users: ranges("         0       1000          1\n"),
            groups: ranges("         0       1000          1\n"),
        }
    }

    fn process(uid: u32, gid: u32, groups: &[u32]) -> wire::Process {
        wire::Process {
            uid,
            gid,
            groups: groups.to_vec(),
            ..wire::Process::default()
        }
    }

    #[test]
    fn a_single_mapped_id_is_roots_only() {
        assert_eq!(
            single().check(&mut process(0, 0, &[]), false).unwrap(),
            [""; 0]
        );
        let error = single()
            .check(&mut process(1000, 0, &[]), false)
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("process.user.uid 1000 is not supported"),
            "{text}"
        );
        assert!(single().check(&mut process(0, 0, &[5]), false).is_err());
    }

    #[test]
    fn by_opt_in_an_unmapped_user_is_root_and_that_is_said() {
        let mut asked = process(1000, 1000, &[5, 0]);
        let changed = single().check(&mut asked, true).unwrap();
        assert_eq!(asked, process(0, 0, &[]));
        assert_eq!(changed.len(), 3);
        assert!(
            changed[0].starts_with("process.user.uid 1000"),
            "{changed:?}"
        );
    }

    #[test]
    fn a_range_of_subordinate_ids_has_a_first_and_a_last() {
        let mapped = Mapped {
            users: ranges("0 1000 1\n1 100000 65536\n"),
            groups: ranges("0 1000 1\n1 100000 65536\n"),
        };
        assert!(mapped.check(&mut process(65536, 0, &[]), false).is_ok());
        assert!(mapped.check(&mut process(65537, 0, &[]), false).is_err());
    }
}
