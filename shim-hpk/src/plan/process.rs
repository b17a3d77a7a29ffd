//! `process` of a spec (or of an exec) in the trampoline's terms.

use hpk_pause::wire;
use oci_spec::runtime::{Capabilities, LinuxCapabilities, PosixRlimitType, Process};

use crate::error::Error;

/// Capabilities by number, as in linux/capability.h.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Name of capability `n`, with its prefix.
pub fn capability_name(n: usize) -> Option<String> {
    CAPABILITIES.get(n).map(|name| format!("CAP_{name}"))
}

/// Plans a process. Streams are descriptors 1 to 3 unless it has a terminal.
pub fn plan(process: &Process, terminal: bool) -> Result<wire::Process, Error> {
    let user = process.user();
    let args = process.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err(Error::Invalid {
            field: "process.args".into(),
            why: "it is empty".into(),
        });
    }
    for (field, id) in [("uid", user.uid()), ("gid", user.gid())] {
        // setresuid(2) takes it for "leave it as it is", which is root.
        if id == u32::MAX {
            return Err(Error::Invalid {
                field: format!("process.user.{field}"),
                why: format!("{id} is no id"),
            });
        }
    }
    if let Some(mask) = user.umask().filter(|mask| *mask > 0o777) {
        return Err(Error::Invalid {
            field: "process.user.umask".into(),
            why: format!("{mask:#o} is no file mode creation mask"),
        });
    }
    let cwd = process.cwd();
    if !cwd.as_os_str().is_empty() && !cwd.is_absolute() {
        return Err(Error::Invalid {
            field: "process.cwd".into(),
            why: format!("{} is not absolute", cwd.display()),
        });
    }
    let size = process
        .console_size()
        .filter(|b| b.width() > 0 && b.height() > 0);
    Ok(wire::Process {
        args,
        env: process.env().clone().unwrap_or_default(),
        cwd: process.cwd().to_string_lossy().into_owned(),
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        // runc's, too, whatever the shim's own is.
        umask: Some(user.umask().unwrap_or(0o022)),
        capabilities: Some(capabilities(process.capabilities().as_ref())),
        rlimits: process
            .rlimits()
            .iter()
            .flatten()
            .map(|r| wire::Rlimit {
                resource: resource(r.typ()),
                soft: r.soft(),
                hard: r.hard(),
            })
            .collect(),
        oom_score_adj: process.oom_score_adj(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        terminal,
        console_size: size.map(|b| (b.width() as u32, b.height() as u32)),
        seccomp: None,
        stdio: if terminal { Vec::new() } else { vec![1, 2, 3] },
    })
}

/// No `capabilities` at all means none, as in runc.
fn capabilities(spec: Option<&LinuxCapabilities>) -> wire::Capabilities {
    let Some(spec) = spec else {
        return wire::Capabilities::default();
    };
    wire::Capabilities {
        bounding: bits(spec.bounding().as_ref()),
        effective: bits(spec.effective().as_ref()),
        permitted: bits(spec.permitted().as_ref()),
        inheritable: bits(spec.inheritable().as_ref()),
        ambient: bits(spec.ambient().as_ref()),
    }
}

fn bits(set: Option<&Capabilities>) -> u64 {
    let number = |name: &str| CAPABILITIES.iter().position(|c| *c == name);
    set.into_iter()
        .flatten()
        .filter_map(|c| number(&c.to_string()))
        .fold(0, |bits, n| bits | 1 << n)
}

fn resource(kind: PosixRlimitType) -> u32 {
    let number = match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_names_of_the_spec_have_the_kernels_numbers() {
        let set: Capabilities =
            serde_json::from_str(r#"["CAP_CHOWN","CAP_SYS_ADMIN","CAP_CHECKPOINT_RESTORE"]"#)
                .unwrap();
        assert_eq!(bits(Some(&set)), 1 | 1 << 21 | 1 << 40);
    }

    #[test]
    fn every_capability_of_the_spec_crate_has_a_number() {
        for n in 0..CAPABILITIES.len() {
            let json = format!("[{:?}]", capability_name(n).unwrap());
            let set: Capabilities = serde_json::from_str(&json).unwrap();
            assert_eq!(bits(Some(&set)), 1 << n, "{json}");
        }
    }
}
