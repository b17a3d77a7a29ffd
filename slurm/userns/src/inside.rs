//! What is mapped in this process's user namespace.

use std::fs;
use std::io;

/// Ranges of ids, first and count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    users: Vec<(u32, u32)>,
    groups: Vec<(u32, u32)>,
}

/// A map that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("reading {path}")]
pub struct Unreadable {
    path: &'static str,
    source: io::Error,
}

impl Mapped {
    /// Those of this process's namespace.
    ///
    /// # Errors
    /// [`Unreadable`], where there is no /proc.
    pub fn here() -> Result<Self, Unreadable> {
        let read = |path| {
            fs::read_to_string(path)
                .map(|text| ranges(&text))
                .map_err(|source| Unreadable { path, source })
        };
        Ok(Self {
            users: read("/proc/self/uid_map")?,
            groups: read("/proc/self/gid_map")?,
        })
    }

    /// All there are, as outside any user namespace.
    #[must_use]
    pub fn all() -> Self {
        Self::of("0 0 4294967295")
    }

    /// The root of a namespace in which nothing else is mapped.
    #[must_use]
    pub fn root_only() -> Self {
        Self::of("0 1000 1")
    }

    /// What a map with this text (user_namespaces(7)) maps, of users and groups alike.
    #[must_use]
    pub fn of(map: &str) -> Self {
        Self {
            users: ranges(map),
            groups: ranges(map),
        }
    }

    #[must_use]
    pub fn has_user(&self, id: u32) -> bool {
        contain(&self.users, id)
    }

    #[must_use]
    pub fn has_group(&self, id: u32) -> bool {
        contain(&self.groups, id)
    }

    /// Whether root is the only user: single-id mode.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.users == [(0, 1)]
    }
}

fn contain(ranges: &[(u32, u32)], id: u32) -> bool {
    ranges
        .iter()
        .any(|&(first, count)| id >= first && id - first < count)
}

/// Lines `inside outside count`.
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

    #[test]
    fn a_single_mapped_id_is_roots_only() {
        let mapped = Mapped::root_only();
        assert!(mapped.is_single() && mapped.has_user(0) && mapped.has_group(0));
        assert!(!mapped.has_user(1) && !mapped.has_group(1000));
    }

    #[test]
    fn a_range_of_subordinate_ids_has_a_first_and_a_last() {
        let mapped = Mapped::of("         0       1000          1\n1 100000 65536\n");
        assert!(!mapped.is_single());
        assert!(mapped.has_user(65536) && !mapped.has_user(65537));
    }

    #[test]
    fn outside_any_namespace_there_are_all() {
        assert!(Mapped::all().has_user(u32::MAX - 1) && !Mapped::all().is_single());
    }
}
