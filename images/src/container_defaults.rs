//! What a container is given where neither image nor user says otherwise: containerd's defaults (its package `oci`), for
//! the kubelet and for hpktainer.

use oci_spec::OciSpecError;
use oci_spec::runtime::{Capability, Mount, MountBuilder};

/// Capabilities, with their numbers in `linux/capability.h`.
pub const CAPABILITIES: [(u32, Capability); 14] = [
    (0, Capability::Chown),
    (1, Capability::DacOverride),
    (3, Capability::Fowner),
    (4, Capability::Fsetid),
    (5, Capability::Kill),
    (6, Capability::Setgid),
    (7, Capability::Setuid),
    (8, Capability::Setpcap),
    (10, Capability::NetBindService),
    (13, Capability::NetRaw),
    (18, Capability::SysChroot),
    (27, Capability::Mknod),
    (29, Capability::AuditWrite),
    (31, Capability::Setfcap),
];

/// Hidden from containers.
pub const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Read-only in containers.
pub const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Options of the kernel's own file systems.
pub const KERNEL: &[&str] = &["nosuid", "noexec", "nodev"];
/// The same, not to be written.
pub const KERNEL_READ_ONLY: &[&str] = &["nosuid", "noexec", "nodev", "ro"];
/// Options of /dev.
pub const DEV: &[&str] = &["nosuid", "strictatime", "mode=755", "size=65536k"];

/// One mount.
pub fn mount(
    kind: &str,
    source: &str,
    target: &str,
    options: &[&str],
) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .typ(kind)
        .source(source)
        .destination(target)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
}

/// The kernel's file systems but /dev/shm, which a pod's containers share.
pub fn kernel_mounts(sys_is_writable: bool) -> Result<Vec<Mount>, OciSpecError> {
    const PTS: &[&str] = &[
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    const CGROUP: &[&str] = &["nosuid", "noexec", "nodev", "relatime", "ro"];
    let sys = match sys_is_writable {
        true => KERNEL,
        false => KERNEL_READ_ONLY,
    };
    Ok(vec![
        mount("proc", "proc", "/proc", KERNEL)?,
        mount("tmpfs", "tmpfs", "/dev", DEV)?,
        mount("devpts", "devpts", "/dev/pts", PTS)?,
        mount("mqueue", "mqueue", "/dev/mqueue", KERNEL)?,
        mount("sysfs", "sysfs", "/sys", sys)?,
        mount("cgroup", "cgroup", "/sys/fs/cgroup", CGROUP)?,
    ])
}

/// The capabilities there are to give: the bounding set of the process with this `/proc/…/status`
/// (proc_pid_status(5)), a bit each.
pub fn parse_bounding(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounding_set_is_read() {
        assert_eq!(
            parse_bounding("Name:\tx\nCapBnd:\t000001ffffffffff\n"),
            Some(0x1ff_ffff_ffff)
        );
        assert_eq!(parse_bounding("Name:\tx\n"), None);
    }

    #[test]
    fn only_a_privileged_container_may_write_sys() {
        for writable in [false, true] {
            let all = kernel_mounts(writable).unwrap();
            let sys = all.iter().find(|m| m.destination().ends_with("sys"));
            let options = sys.unwrap().options().clone().unwrap();
            assert_eq!(!options.contains(&"ro".to_owned()), writable);
        }
    }
}
