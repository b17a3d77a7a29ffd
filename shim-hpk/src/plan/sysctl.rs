//! `linux.sysctl`: only what belongs to a namespace the container doesn't share with the host, as in
//! runc; another one would be set for the whole machine.

use std::collections::HashSet;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::error::Error;

const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// The spec's sysctls in the order of their names.
///
/// # Errors
/// [`Error::Invalid`] for one that isn't the container's to set.
pub fn plan(spec: &Spec) -> Result<Vec<(String, String)>, Error> {
    let linux = spec.linux().clone().unwrap_or_default();
    let namespaces: HashSet<LinuxNamespaceType> = linux
        .namespaces()
        .iter()
        .flatten()
        .map(|n| n.typ())
        .collect();
    let mut all: Vec<(String, String)> = linux
        .sysctl()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    all.sort();
    for (name, _) in &all {
        let dotted = name.as_str();
        let owner = if dotted.starts_with("net.") {
            Some(LinuxNamespaceType::Network)
        } else if IPC.contains(&dotted) || dotted.starts_with("fs.mqueue.") {
            Some(LinuxNamespaceType::Ipc)
        } else if dotted == "kernel.domainname" || dotted == "kernel.hostname" {
            Some(LinuxNamespaceType::Uts)
        } else {
            None
        };
        let invalid = |why: &str| {
            Err(Error::Invalid {
                field: format!("linux.sysctl {name}"),
                why: why.to_owned(),
            })
        };
        let path = path(name);
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return invalid("it is no name of a sysctl");
        }
        match owner {
            Some(owner) if namespaces.contains(&owner) => {}
            Some(_) => return invalid("the container shares that namespace with the host"),
            None => return invalid("it is the whole machine's"),
        }
    }
    Ok(all)
}

/// Below /proc/sys: a slash stands for a dot within a name (eth0.1), as in sysctl(8).
fn path(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str) -> Result<Vec<(String, String)>, Error> {
        let spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.1.0",
            "linux": {
                "namespaces": [{"type": "network"}, {"type": "ipc"}],
                "sysctl": {name: "1"},
            },
        }));
        plan(&spec.unwrap())
    }

    #[test]
    fn a_sysctl_of_a_namespace_of_its_own_is_set() {
        for name in [
            "net.ipv4.ip_forward",
            "net.ipv4.conf.eth0/1.forwarding",
            "kernel.shmmax",
            "fs.mqueue.msg_max",
        ] {
            assert_eq!(planned(name).unwrap(), [(name.to_owned(), "1".to_owned())]);
        }
    }

    #[test]
    fn a_sysctl_of_the_machine_or_of_a_shared_namespace_is_refused() {
        for name in [
            "kernel.core_pattern",
            "vm.overcommit_memory",
            "kernel.hostname",
            "netx.y",
            "",
        ] {
            let text = planned(name).unwrap_err().to_string();
            assert!(
                text.starts_with(&format!("linux.sysctl {name} is invalid")),
                "{text}"
            );
        }
    }

    #[test]
    fn a_name_that_leads_out_of_proc_sys_is_refused() {
        for name in ["net.//.//.tmp.x", "net..x", "net."] {
            let text = planned(name).unwrap_err().to_string();
            assert!(text.contains("no name of a sysctl"), "{text}");
        }
    }
}
