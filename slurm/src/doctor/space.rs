//! The judgement on file systems: the node-local one and the home.

use super::judge::{Finding, fine, missing, warning};
use super::observe::{Observed, Place};

/// Less than this on the node-local file system and pods are evicted from the start.
const LEAST_LOCAL_MIB: u64 = 1024;

fn is_shared(kind: &str) -> bool {
    [
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.sshfs",
        "9p",
        "panfs",
        "wekafs",
    ]
    .contains(&kind)
}

pub fn local(seen: &Observed) -> Finding {
    const WHAT: &str = "node-local space";
    match &seen.local {
        Err(error) => missing(
            WHAT,
            error.clone(),
            "name a folder of this host in HPK_LOCAL",
        ),
        Ok(place) if is_shared(&place.kind) => missing(
            WHAT,
            describe(place),
            "a shared file system can't hold a node's state: name a folder of this host in HPK_LOCAL",
        ),
        Ok(place) if place.lawless => missing(
            WHAT,
            format!(
                "{}: other users may rename what is in it",
                place.path.display()
            ),
            "ask for its sticky bit (mode 1777), or name another folder of this host in HPK_LOCAL",
        ),
        Ok(place) if place.free_mib < LEAST_LOCAL_MIB => missing(
            WHAT,
            describe(place),
            "less than 1 GiB is free: name a roomier folder of this host in HPK_LOCAL",
        ),
        Ok(place) => fine(WHAT, describe(place)),
    }
}

pub fn home(seen: &Observed) -> Finding {
    const WHAT: &str = "home";
    match &seen.home {
        Err(error) => missing(WHAT, error.clone(), "set HOME"),
        Ok(place) if place.free_mib < LEAST_LOCAL_MIB => warning(
            WHAT,
            describe(place),
            "images are kept there: free some space, or name another folder in HPK_HOME",
        ),
        Ok(place) => fine(WHAT, describe(place)),
    }
}

fn describe(place: &Place) -> String {
    format!(
        "{}: {}, {:.1} GiB free",
        place.path.display(),
        place.kind,
        place.free_mib as f64 / 1024.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::judge::Verdict;
    use crate::doctor::judge::tests::{finding, healthy};

    #[test]
    fn node_local_space_must_not_be_shared() {
        let seen = Observed {
            local: healthy().home,
            ..healthy()
        };
        assert_eq!(finding(&seen, "node-local space").verdict, Verdict::Missing);
    }

    #[test]
    fn node_local_space_must_keep_others_from_renaming() {
        let lawless = Place {
            lawless: true,
            ..healthy().local.unwrap()
        };
        let seen = Observed {
            local: Ok(lawless),
            ..healthy()
        };
        let found = finding(&seen, "node-local space");
        assert_eq!(found.verdict, Verdict::Missing);
        assert!(found.ask.contains("sticky"));
    }
}
