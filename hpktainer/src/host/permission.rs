//! Why a host refuses user namespaces, or privileges in them.

use std::fs;

use nix::errno::Errno;

/// Ubuntu's switch: `1` lets only programs with an AppArmor profile have privileges in user namespaces.
const APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";

/// Names the host's switch behind a refusal, where it is on.
pub fn explain(error: anyhow::Error) -> anyhow::Error {
    // A host without AppArmor has no such file.
    let switch = fs::read_to_string(APPARMOR).unwrap_or_default();
    explain_with(&switch, error)
}

fn explain_with(switch: &str, error: anyhow::Error) -> anyhow::Error {
    let refused = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<Errno>())
        .any(|errno| matches!(errno, Errno::EPERM | Errno::EACCES));
    match refused && switch.trim() == "1" {
        true => error.context(
            "AppArmor lets only programs with a profile use user namespaces here, and hpktainer has none \
             (docs/troubleshooting.md, AppArmor)",
        ),
        false => error,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_refusal_under_the_hosts_switch_is_explained() {
        let said = |switch, errno: Errno| {
            let error = Err::<(), _>(errno).context("becoming user 0").unwrap_err();
            format!("{:#}", explain_with(switch, error))
        };
        let explained = said("1\n", Errno::EPERM);
        assert!(
            explained.contains("AppArmor") && explained.contains("becoming user 0"),
            "{explained}"
        );
        for (switch, errno) in [
            ("0\n", Errno::EPERM),
            ("", Errno::EPERM),
            ("1\n", Errno::ENOSPC),
        ] {
            assert!(!said(switch, errno).contains("AppArmor"));
        }
    }
}
