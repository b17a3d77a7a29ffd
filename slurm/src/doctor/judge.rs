//! What was seen, judged: fine, worth a warning, or missing, and what to ask the administrator for.

use hpk_userns::Ids;

use super::observe::Observed;
use super::space::{home, local};
use crate::bubble::proxies_by_nftables;
use crate::gpus::Device;
use crate::image::Found;
use crate::userns::Failure;
use crate::userns::probe::Maker;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    Warning,
    /// HPK can't run without it.
    Missing,
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub what: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// What to do, or to ask for; empty when all is fine.
    pub ask: String,
}

/// What is written on each finding, a section each.
const PAGE: &str = "docs/troubleshooting.md";

impl Finding {
    /// Its section, with the anchor that renderers make of a heading: lower case, spaces as hyphens, other signs left out.
    pub fn link(&self) -> String {
        let signs = self.what.to_lowercase();
        let kept = signs.chars().filter_map(|sign| match sign {
            ' ' => Some('-'),
            '-' | '_' => Some(sign),
            _ => sign.is_alphanumeric().then_some(sign),
        });
        format!("{PAGE}#{}", kept.collect::<String>())
    }
}

/// The oldest Apptainer with what is used here (`--pid-file`, fakeroot without setuid, FUSE mounts).
const OLDEST_APPTAINER: (u32, u32) = (1, 3);
/// Ids that images commonly need.
const COMMON_IDS: u32 = 65_536;

pub fn judge(seen: &Observed) -> Vec<Finding> {
    vec![
        user_namespaces(seen),
        app_armor(seen),
        subordinate_ids(seen),
        apptainer(seen),
        device(
            "/dev/fuse",
            &seen.fuse,
            "ask for /dev/fuse with mode 0666 (the module fuse loaded)",
        ),
        device(
            "/dev/net/tun",
            &seen.tun,
            "ask for /dev/net/tun with mode 0666 (the module tun loaded)",
        ),
        uplink(seen),
        overlay(seen),
        nftables(seen),
        limits(seen),
        gpus(seen),
        local(seen),
        home(seen),
    ]
}

/// The image that a job would start from.
pub fn image(found: anyhow::Result<Found>) -> Finding {
    const WHAT: &str = "bubble image";
    match found {
        Ok(found) => fine(WHAT, found.to_string()),
        Err(error) => missing(
            WHAT,
            format!("{error:#}"),
            "see README.md, \"On a real cluster\"",
        ),
    }
}

pub fn fine(what: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        what,
        verdict: Verdict::Fine,
        found: found.into(),
        ask: String::new(),
    }
}

pub fn warning(what: &'static str, found: impl Into<String>, ask: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Warning,
        ask: ask.into(),
        ..fine(what, found)
    }
}

pub fn missing(what: &'static str, found: impl Into<String>, ask: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Missing,
        ..warning(what, found, ask)
    }
}

fn sysctl<'a>(seen: &'a Observed, name: &str) -> Option<&'a str> {
    seen.sysctls
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value.as_str())
}

fn user_namespaces(seen: &Observed) -> Finding {
    const WHAT: &str = "user namespaces";
    if sysctl(seen, "kernel/unprivileged_userns_clone") == Some("0") {
        return missing(
            WHAT,
            "kernel.unprivileged_userns_clone is 0",
            "ask for sysctl kernel.unprivileged_userns_clone=1",
        );
    }
    for name in ["user/max_user_namespaces", "user/max_net_namespaces"] {
        let count = sysctl(seen, name).and_then(|value| value.parse::<u64>().ok());
        if count.is_some_and(|count| count < 64) {
            let name = name.replace('/', ".");
            return missing(
                WHAT,
                format!("{name} is {}", count.unwrap_or_default()),
                format!("ask for sysctl {name}=15000 (a pod needs one)"),
            );
        }
    }
    match &seen.namespaces {
        Ok(Maker::Own) => fine(WHAT, "allowed"),
        Ok(Maker::Apptainer) => fine(WHAT, "allowed to apptainer"),
        Err(why) if app_armor_restricts(seen) => untried(WHAT, why),
        Err(why) => missing(WHAT, why.clone(), "ask why users may not make them"),
    }
}

/// Programs without a profile may make no user namespaces; those that have one, as Apptainer, may.
fn app_armor_restricts(seen: &Observed) -> bool {
    sysctl(seen, "kernel/apparmor_restrict_unprivileged_userns") == Some("1")
}

fn app_armor(seen: &Observed) -> Finding {
    const WHAT: &str = "AppArmor";
    match (app_armor_restricts(seen), &seen.namespaces) {
        (true, Ok(Maker::Apptainer)) => fine(WHAT, "lets apptainer make user namespaces"),
        (true, _) => warning(
            WHAT,
            "restricts unprivileged user namespaces",
            "ask for an AppArmor profile that gives apptainer and pasta `userns,` (some packages of apptainer bring one; Debian's doesn't)",
        ),
        (false, _) => fine(WHAT, "no general restriction of user namespaces"),
    }
}

fn subordinate_ids(seen: &Observed) -> Finding {
    const WHAT: &str = "subuid and subgid";
    let user = &seen.user;
    let ask = format!(
        "ask for `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}`, or ranges free at your site"
    );
    match &seen.ids {
        Err(error) => missing(WHAT, error.clone(), ask),
        Ok(Ids::Single { why }) => warning(
            WHAT,
            format!("{why}: single-id mode, in which pods run as root alone"),
            format!("for pods with other users {ask}, and for the package uidmap (newuidmap)"),
        ),
        Ok(Ids::Subordinate(ids)) if ids.users.1.min(ids.groups.1) < COMMON_IDS => warning(
            WHAT,
            format!("{} users, {} groups", ids.users.1, ids.groups.1),
            format!("images with higher ids will fail; {ask}"),
        ),
        Ok(Ids::Subordinate(ids)) => {
            fine(WHAT, format!("{} users from {}", ids.users.1, ids.users.0))
        }
    }
}

fn apptainer(seen: &Observed) -> Finding {
    const WHAT: &str = "apptainer";
    let (name, answer) = &seen.apptainer;
    let (major, minor) = OLDEST_APPTAINER;
    let ask = format!("ask for Apptainer {major}.{minor} or newer, or name one in HPK_APPTAINER");
    match answer {
        Err(error) => missing(WHAT, format!("{name}: {error}"), ask),
        Ok(text) => match version(text) {
            Some(have) if have < OLDEST_APPTAINER => missing(WHAT, format!("{name}: {text}"), ask),
            Some(_) => fine(WHAT, text.clone()),
            None => warning(WHAT, format!("{name} says {text:?}"), ask),
        },
    }
}

/// Major and minor number in `apptainer version 1.4.5-2.fc41`.
fn version(text: &str) -> Option<(u32, u32)> {
    let word = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut numbers = word.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn device(what: &'static str, answer: &Result<(), String>, ask: &str) -> Finding {
    match answer {
        Ok(()) => fine(what, "usable"),
        Err(error) => missing(what, error.clone(), ask),
    }
}

fn limits(seen: &Observed) -> Finding {
    const WHAT: &str = "pods' limits";
    let missing: Vec<&str> = match &seen.limits {
        Err(error) => return warning(WHAT, error.clone(), ""),
        Ok(usable) => ["cpu", "memory"]
            .into_iter()
            .filter(|name| !usable.iter().any(|have| have == name))
            .collect(),
    };
    if missing.is_empty() {
        return fine(WHAT, "CPU and memory limits are enforced");
    }
    warning(
        WHAT,
        format!(
            "no cgroup of {} may be made: not enforced",
            missing.join(" and ")
        ),
        "ask for a cgroup that your jobs may write (v2: delegated to the job; else its name in HPK_CGROUP)",
    )
}

fn gpus(seen: &Observed) -> Finding {
    const WHAT: &str = "GPUs";
    let offer = match &seen.gpus {
        None => return fine(WHAT, "this host has no GPU's driver"),
        Some(Err(error)) => {
            return missing(WHAT, error.clone(), "name those that are here, or none");
        }
        Some(Ok(offer)) => offer,
    };
    match &offer.withheld {
        Some(why) => warning(WHAT, why.clone(), "docs/administrators.md, \"GPUs\""),
        None if offer.devices.is_empty() => fine(WHAT, "none granted (sbatch --gres=gpu:N)"),
        None => {
            let all: Vec<String> = offer.devices.iter().map(Device::argument).collect();
            fine(WHAT, format!("for pods: {}", all.join(" ")))
        }
    }
}

fn uplink(seen: &Observed) -> Finding {
    const WHAT: &str = "uplink";
    match (&seen.pasta, &seen.slirp4netns) {
        (Some(path), _) => fine(WHAT, path.display().to_string()),
        (None, Some(path)) => warning(
            WHAT,
            path.display().to_string(),
            "pasta (package passt) is faster",
        ),
        (None, None) => missing(
            WHAT,
            "neither pasta nor slirp4netns",
            "ask for the package passt",
        ),
    }
}

fn overlay(seen: &Observed) -> Finding {
    match &seen.overlay {
        Ok(()) => fine("kernel overlay", "works in a user namespace"),
        Err(Failure::Untried(why)) => untried("kernel overlay", why),
        Err(Failure::Failed(error)) => warning(
            "kernel overlay",
            error.clone(),
            "slower fuse-overlayfs is used; a kernel from 5.11 can do it",
        ),
    }
}

/// A bubble may have it all the same: Apptainer may make namespaces where this program may not.
fn untried(what: &'static str, why: &str) -> Finding {
    warning(
        what,
        format!("can't be tried: {why}"),
        "see user namespaces and AppArmor",
    )
}

fn nftables(seen: &Observed) -> Finding {
    const WHAT: &str = "nftables";
    let error = match &seen.nftables {
        Ok(()) => return fine(WHAT, "takes the pod network's rules"),
        Err(Failure::Untried(why)) => return untried(WHAT, why),
        Err(Failure::Failed(error)) => error.clone(),
    };
    let ask = "ask for the kernel's modules nf_tables, nft_chain_nat, nft_masq, nft_nat, nft_ct, nft_fib and nft_numgen to be loaded";
    if proxies_by_nftables(sysctl(seen, "kernel/osrelease").unwrap_or_default()) {
        return missing(WHAT, error, ask);
    }
    warning(WHAT, error, format!("iptables has to do; better {ask}"))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::doctor::observe::Place;
    use crate::gpus::Offer;
    use hpk_userns::Ranges;
    use std::path::PathBuf;

    pub fn healthy() -> Observed {
        let place = |kind: &str| Place {
            path: "/x".into(),
            kind: kind.into(),
            free_mib: 9999,
            lawless: false,
        };
        Observed {
            user: "hpc".into(),
            sysctls: vec![
                ("kernel/osrelease", "6.1.0-40-amd64".into()),
                ("user/max_user_namespaces", "96000".into()),
            ],
            ids: Ok(Ids::Subordinate(Ranges {
                users: (100_000, 65_536),
                groups: (100_000, 65_536),
                newuidmap: PathBuf::from("/usr/bin/newuidmap"),
                newgidmap: PathBuf::from("/usr/bin/newgidmap"),
            })),
            apptainer: ("apptainer".into(), Ok("apptainer version 1.4.5".into())),
            fuse: Ok(()),
            tun: Ok(()),
            pasta: Some("/usr/bin/pasta".into()),
            slirp4netns: None,
            namespaces: Ok(Maker::Own),
            overlay: Ok(()),
            nftables: Ok(()),
            limits: Ok(vec!["cpu".into(), "memory".into()]),
            gpus: None,
            local: Ok(place("tmpfs")),
            home: Ok(place("nfs4")),
        }
    }

    pub fn finding(seen: &Observed, what: &str) -> Finding {
        judge(seen)
            .into_iter()
            .find(|one| one.what == what)
            .unwrap()
    }

    #[test]
    fn each_line_has_a_paragraph_in_the_docs() {
        let page = include_str!("../../../docs/troubleshooting.md");
        for Finding { what, .. } in judge(&healthy()) {
            let heading = format!("\n### {what}\n");
            assert!(page.contains(&heading), "{what:?} is no heading there");
        }
    }

    #[test]
    fn a_finding_leads_to_its_section() {
        let link = |what| fine(what, "").link();
        for (what, anchor) in [
            ("/dev/net/tun", "devnettun"),
            ("pods' limits", "pods-limits"),
            ("AppArmor", "apparmor"),
            ("node-local space", "node-local-space"),
        ] {
            assert_eq!(link(what), format!("docs/troubleshooting.md#{anchor}"));
        }
    }

    #[test]
    fn a_healthy_host_lacks_nothing() {
        assert!(
            judge(&healthy())
                .iter()
                .all(|one| one.verdict == Verdict::Fine)
        );
    }

    #[test]
    fn a_user_without_subuids_is_told_of_the_mode_and_what_to_ask_for() {
        let why = "user hpc has no range in /etc/subuid".to_owned();
        let seen = Observed {
            ids: Ok(Ids::Single { why }),
            ..healthy()
        };
        let found = finding(&seen, "subuid and subgid");
        assert_eq!(found.verdict, Verdict::Warning);
        assert!(found.found.contains("single-id mode"), "{found:?}");
        assert!(found.ask.contains("usermod --add-subuids"));
    }

    #[test]
    fn limits_that_nobody_enforces_are_a_warning_that_names_them() {
        let seen = Observed {
            limits: Ok(vec!["cpu".into()]),
            ..healthy()
        };
        let found = finding(&seen, "pods' limits");
        assert_eq!(found.verdict, Verdict::Warning);
        assert!(found.found.contains("no cgroup of memory"), "{found:?}");
    }

    #[test]
    fn gpus_that_cannot_be_given_are_a_warning_with_the_reason() {
        let withheld = Offer {
            devices: Vec::new(),
            withheld: Some("Slurm granted shards".into()),
        };
        let seen = |gpus| Observed {
            gpus: Some(gpus),
            ..healthy()
        };
        let found = finding(&seen(Ok(withheld)), "GPUs");
        assert_eq!(found.verdict, Verdict::Warning);
        assert_eq!(found.found, "Slurm granted shards");
        let wrong = finding(&seen(Err("HPK_GPUS: 7 is no GPU".into())), "GPUs");
        assert_eq!(wrong.verdict, Verdict::Missing);
    }

    #[test]
    fn a_missing_apptainer_is_named_as_it_was_asked_for() {
        let seen = Observed {
            apptainer: ("/no/such/apptainer".into(), Err("not found".into())),
            ..healthy()
        };
        assert_eq!(
            finding(&seen, "apptainer").found,
            "/no/such/apptainer: not found"
        );
    }

    #[test]
    fn an_old_apptainer_is_refused() {
        assert_eq!(version("apptainer version 1.2.3-1"), Some((1, 2)));
        let seen = Observed {
            apptainer: ("apptainer".into(), Ok("apptainer version 1.2.3-1".into())),
            ..healthy()
        };
        assert_eq!(finding(&seen, "apptainer").verdict, Verdict::Missing);
    }

    #[test]
    fn without_nftables_only_an_old_kernel_s_proxy_can_do() {
        let seen = |kernel: &str| Observed {
            sysctls: vec![("kernel/osrelease", kernel.into())],
            nftables: Err(Failure::Failed("offering a rule: not supported".into())),
            ..healthy()
        };
        let verdict = |kernel| finding(&seen(kernel), "nftables").verdict;
        assert_eq!(verdict("5.14.0-427.el9"), Verdict::Missing);
        assert_eq!(verdict("4.18.0-553.el8"), Verdict::Warning);
    }

    #[test]
    fn what_app_armor_keeps_from_being_tried_is_no_refusal() {
        let why = "writing setgroups: Operation not permitted";
        let seen = |switch: &str| Observed {
            sysctls: vec![
                ("kernel/osrelease", "6.8.0-31-generic".into()),
                (
                    "kernel/apparmor_restrict_unprivileged_userns",
                    switch.into(),
                ),
            ],
            namespaces: Err(why.into()),
            overlay: Err(Failure::Untried(why.into())),
            nftables: Err(Failure::Untried(why.into())),
            ..healthy()
        };
        let missing = |seen: &Observed| -> Vec<_> {
            let all = judge(seen).into_iter();
            let all = all.filter(|finding| finding.verdict == Verdict::Missing);
            all.map(|finding| (finding.what, finding.found)).collect()
        };
        assert_eq!(missing(&seen("1")), []);
        let found = finding(&seen("1"), "nftables");
        assert!(found.verdict == Verdict::Warning && found.found.contains(why));
        // Apptainer may.
        let allowed = Observed {
            namespaces: Ok(Maker::Apptainer),
            overlay: Ok(()),
            nftables: Ok(()),
            ..seen("1")
        };
        assert!(judge(&allowed).iter().all(|it| it.verdict == Verdict::Fine));
        // Nothing that is known allows it to any.
        assert_eq!(missing(&seen("0")), [("user namespaces", why.to_owned())]);
    }

    #[test]
    fn forbidden_user_namespaces_are_missing() {
        let seen = Observed {
            sysctls: vec![("kernel/unprivileged_userns_clone", "0".into())],
            ..healthy()
        };
        assert_eq!(finding(&seen, "user namespaces").verdict, Verdict::Missing);
    }
}
