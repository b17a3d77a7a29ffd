//! Which user and group ids there are: in a user namespace those that are mapped. A site without
//! subordinate ids maps a single one, root.

use hpk_pause::wire;
use hpk_userns::Mapped;

use crate::error::Error;

/// Annotation of a container that may run as root where its user isn't mapped: `"true"`.
pub const SQUASH: &str = "io.hpk.squash-ids";

/// Lets a process have its ids, or with `squash` root's in their place; gives what was changed. Groups
/// that root is to have beside its own, and that aren't mapped, are left out: callers list those of the
/// image's /etc/group, and root needs none.
///
/// # Errors
/// [`Error::Unsupported`] with the id.
pub fn check(
    mapped: &Mapped,
    process: &mut wire::Process,
    squash: bool,
) -> Result<Vec<String>, Error> {
    let mut changed = Vec::new();
    let mut ask = |field: &str, id: u32, is_mapped: bool| {
        if is_mapped {
            return Ok(id);
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
        Ok(0)
    };
    let asked = process.uid;
    process.uid = ask("process.user.uid", asked, mapped.has_user(asked))?;
    process.gid = ask(
        "process.user.gid",
        process.gid,
        mapped.has_group(process.gid),
    )?;
    if process.uid != asked {
        // Another user than root would have none of them in effect.
        process.capabilities = Some(wire::Capabilities::default());
    }
    let (kept, lost): (Vec<u32>, Vec<u32>) = process
        .groups
        .iter()
        .partition(|group| mapped.has_group(**group));
    if process.uid != 0 {
        for group in &lost {
            ask("process.user.additionalGids", *group, false)?;
        }
    }
    process.groups = kept;
    if !lost.is_empty() || !changed.is_empty() {
        process.groups.retain(|group| *group != 0);
    }
    if process.uid == 0 && !lost.is_empty() {
        changed.push(format!(
            "process.user.additionalGids {lost:?} are not mapped here: left out"
        ));
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            check(&Mapped::root_only(), &mut process(0, 0, &[]), false).unwrap(),
            [""; 0]
        );
        let error = check(&Mapped::root_only(), &mut process(1000, 0, &[]), false).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("process.user.uid 1000 is not supported"),
            "{text}"
        );
        let error = check(
            &Mapped::of("0 1000 1\n7 7 1"),
            &mut process(7, 0, &[5]),
            false,
        );
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("process.user.additionalGids 5"), "{text}");
    }

    #[test]
    fn roots_further_groups_are_left_out_and_that_is_said() {
        let mut asked = process(0, 0, &[0, 1, 10]);
        let changed = check(&Mapped::root_only(), &mut asked, false).unwrap();
        assert_eq!(asked, process(0, 0, &[]));
        assert_eq!(changed.len(), 1);
        assert!(changed[0].contains("[1, 10]"), "{changed:?}");
    }

    #[test]
    fn by_opt_in_an_unmapped_user_is_root_and_that_is_said() {
        let mut asked = process(1000, 1000, &[5, 0]);
        let changed = check(&Mapped::root_only(), &mut asked, true).unwrap();
        let none = Some(wire::Capabilities::default());
        assert_eq!(
            asked,
            wire::Process {
                capabilities: none,
                ..process(0, 0, &[])
            }
        );
        assert_eq!(changed.len(), 3);
        assert!(
            changed[0].starts_with("process.user.uid 1000"),
            "{changed:?}"
        );
    }
}
