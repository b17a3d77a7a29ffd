//! Apptainer's command line and configuration: the least it can do, as the trampoline does the rest.

use std::path::Path;

use super::process::capability_name;

/// Apptainer's configuration for our containers: its mounts of /proc and /sys (a user namespace
/// may mount those only while it sees some), and nothing of the host's.
pub const CONFIGURATION: &str = "\
allow setuid = no
max loop devices = 0
allow pid ns = yes
allow user ns = yes
allow ipc ns = yes
allow uts ns = yes
config passwd = no
config group = no
config resolv_conf = no
mount proc = yes
mount sys = yes
mount dev = no
mount devpts = no
mount home = no
mount tmp = no
mount hostfs = no
mount slave = yes
user bind control = no
enable fusemount = no
enable overlay = no
enable underlay = no
sessiondir max size = 16
allow container dir = yes
root default capabilities = full
memory fs type = tmpfs
systemd cgroups = no
";

/// Arguments after `apptainer`. `permitted` are the shim's own capabilities, `program` and its
/// `socket` what the container runs first.
pub fn arguments(
    configuration: &Path,
    rootfs: &Path,
    new_pid_namespace: bool,
    permitted: u64,
    program: &str,
    socket: &str,
) -> Vec<String> {
    let mut all: Vec<String> = vec![
        "--silent".into(),
        "--config".into(),
        configuration.to_string_lossy().into_owned(),
        "exec".into(),
    ];
    if new_pid_namespace {
        all.push("--pid".into());
    }
    for flag in [
        "--no-init",
        "--writable",
        "--cleanenv",
        "--no-home",
        "--no-umask",
        // Setuid programs are the spec's (no_new_privs) to forbid; a bubble forbids them anyway.
        "--allow-setuid",
        "--pwd",
        "/",
    ] {
        all.push(flag.into());
    }
    // It wants to give all capabilities there are, and fails if the shim itself lacks one.
    let lacking: Vec<String> = (0..)
        .map_while(|n| Some((n, capability_name(n)?)))
        .filter(|(n, _)| permitted & (1 << n) == 0)
        .map(|(_, name)| name)
        .collect();
    if !lacking.is_empty() {
        all.push("--drop-caps".into());
        all.push(lacking.join(","));
    }
    all.push(rootfs.to_string_lossy().into_owned());
    all.push(program.to_owned());
    all.push("init".into());
    all.push(socket.to_owned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_the_shim_lacks_are_not_asked_for() {
        let with = |permitted| {
            arguments(
                Path::new("/c"),
                Path::new("/r"),
                true,
                permitted,
                "/proc/self/fd/7",
                "8",
            )
        };
        assert!(!with((1 << 41) - 1).contains(&"--drop-caps".to_owned()));
        let without_resource = with(((1 << 41) - 1) & !(1 << 24));
        let at = without_resource
            .iter()
            .position(|a| a == "--drop-caps")
            .unwrap();
        assert_eq!(without_resource[at + 1], "CAP_SYS_RESOURCE");
    }
}
