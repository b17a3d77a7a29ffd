//! Which user and group ids there are: in a user namespace those that are mapped. A site without
//! subordinate ids maps a single one, root.

use hpk_pause::wire;
use hpk_userns::Mapped;

use crate::error::Error;

/// Annotation of a container that may run as root where its user isn't mapped: `"true"`.
pub const SQUASH: &str = "io.hpk.squash-ids";

/// Lets a process have its ids, or with `squash` root's in their place; gives what was changed.
///
/// # Errors
/// [`Error::Unsupported`] with the id.
pub fn check(
    mapped: &Mapped,
    process: &mut wire::Process,
    squash: bool,
) -> Result<Vec<String>, Error> {
    let (user, group) = (|id| mapped.has_user(id), |id| mapped.has_group(id));
    let mut changed = Vec::new();
    let mut ask = |field: String, id: &mut u32, has: &dyn Fn(u32) -> bool| {
        if has(*id) {
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
    ask("process.user.uid".into(), &mut process.uid, &user)?;
    ask("process.user.gid".into(), &mut process.gid, &group)?;
    for id in &mut process.groups {
        ask("process.user.additionalGids".into(), id, &group)?;
    }
    if !changed.is_empty() {
        process.groups.retain(|&g| g != 0);
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
        assert!(check(&Mapped::root_only(), &mut process(0, 0, &[5]), false).is_err());
    }

    #[test]
    fn by_opt_in_an_unmapped_user_is_root_and_that_is_said() {
        let mut asked = process(1000, 1000, &[5, 0]);
        let changed = check(&Mapped::root_only(), &mut asked, true).unwrap();
        assert_eq!(asked, process(0, 0, &[]));
        assert_eq!(changed.len(), 3);
        assert!(
            changed[0].starts_with("process.user.uid 1000"),
            "{changed:?}"
        );
    }
}
