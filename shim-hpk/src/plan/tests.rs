use std::path::Path;

use hpk_userns::Mapped;
use serde_json::{Value, json};

use super::*;

fn spec(extra: Value) -> Spec {
    let mut base = json!({
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
    });
    merge(&mut base, extra);
    serde_json::from_value(base).unwrap()
}

fn merge(base: &mut Value, extra: Value) {
    match (base, extra) {
        (Value::Object(base), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, extra) => *base = extra,
    }
}

fn planned(extra: Value) -> Container {
    container(
        &spec(extra),
        "id",
        Path::new("/bundle"),
        Vec::new(),
        false,
        &Mapped::all(),
    )
    .unwrap()
}

fn refusal(extra: Value) -> String {
    container(
        &spec(extra),
        "id",
        Path::new("/bundle"),
        Vec::new(),
        false,
        &Mapped::all(),
    )
    .unwrap_err()
    .to_string()
}

fn joined(path: &str, flag: CloneFlags, name: &str) -> namespaces::Joined {
    namespaces::Joined {
        path: path.into(),
        flag,
        field: format!("linux.namespaces {name}"),
    }
}

#[test]
fn a_pods_namespaces_are_joined_by_path() {
    let plan = planned(json!({"linux": {"namespaces": [
        {"type": "network", "path": "/run/netns/pod"}, {"type": "ipc", "path": "/proc/7/ns/ipc"},
        {"type": "uts"}, {"type": "pid"}, {"type": "mount"},
    ]}, "hostname": "web-0"}));
    assert_eq!(
        plan.join,
        [
            joined("/run/netns/pod", CloneFlags::CLONE_NEWNET, "network"),
            joined("/proc/7/ns/ipc", CloneFlags::CLONE_NEWIPC, "ipc"),
        ]
    );
    assert_eq!(
        plan.unshare,
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS
    );
    assert_eq!(plan.pid_namespace, namespaces::Pid::New);
    assert_eq!(plan.setup.hostname.as_deref(), Some("web-0"));
    assert!(!plan.setup.loopback_up);
}

#[test]
fn the_host_name_of_a_shared_uts_namespace_is_left_alone() {
    let plan = planned(json!({"hostname": "web-0", "linux": {"namespaces": [
        {"type": "uts", "path": "/proc/7/ns/uts"},
    ]}}));
    assert_eq!(plan.setup.hostname, None);
    assert_eq!(plan.pid_namespace, namespaces::Pid::Host);
}

#[test]
fn a_host_name_without_a_uts_namespace_is_refused() {
    for field in ["hostname", "domainname"] {
        let mut spec = json!({"linux": {"namespaces": []}});
        spec[field] = "web-0".into();
        let error = refusal(spec);
        assert!(
            error.starts_with(&format!("{field} is invalid: \"web-0\" would")),
            "{error}"
        );
    }
}

#[test]
fn a_new_network_namespace_gets_its_loopback() {
    assert!(
        planned(json!({"linux": {"namespaces": [{"type": "network"}]}}))
            .setup
            .loopback_up
    );
}

#[test]
fn binds_are_opened_outside_and_numbered_after_the_streams() {
    let plan = planned(json!({"mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/data", "type": "bind", "source": "/src", "options": ["rbind", "ro"]},
        {"destination": "etc/hosts", "source": "hosts", "options": ["bind", "nosuid"]},
    ]}));
    assert_eq!(plan.setup.mounts[0].tree, None);
    assert_eq!(plan.setup.mounts[1].tree, Some(4));
    assert_eq!(plan.setup.mounts[1].flags, libc::MS_RDONLY);
    assert!(plan.sources[0].recursive);
    assert_eq!(plan.sources[1].path, Path::new("/bundle/hosts"));
    assert!(!plan.sources[1].recursive);
    assert_eq!(plan.setup.mounts[2].destination, "/etc/hosts");
    // The default devices follow.
    assert_eq!(plan.setup.devices[0].tree, Some(6));
    assert_eq!(plan.sources[2].path, Path::new("/dev/null"));
    assert!(plan.setup.keep_proc && !plan.setup.keep_sys);
}

#[test]
fn a_bound_dev_is_not_populated() {
    let plan = planned(json!({"mounts": [
        {"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]},
    ]}));
    assert!(!plan.setup.populate_dev);
    assert!(plan.setup.devices.is_empty());
}

#[test]
fn recursive_read_only_is_told_from_read_only() {
    let plan = planned(json!({"mounts": [
        {"destination": "/a", "type": "bind", "source": "/a", "options": ["rbind", "rro"]},
        {"destination": "/b", "type": "tmpfs", "source": "tmpfs", "options": ["noexec", "size=1m", "rw"]},
    ]}));
    assert!(plan.setup.mounts[0].recursive_flags);
    assert_eq!(plan.setup.mounts[0].flags, libc::MS_RDONLY);
    assert_eq!(plan.setup.mounts[1].data, "size=1m");
    assert_eq!(plan.setup.mounts[1].flags, libc::MS_NOEXEC);
    assert_eq!(plan.setup.mounts[1].clear_flags, libc::MS_RDONLY);
}

#[test]
fn mount_propagation_is_private_unless_asked_for() {
    let plan = planned(json!({"mounts": [
        {"destination": "/a", "type": "bind", "source": "/a", "options": ["rbind"]},
        {"destination": "/b", "type": "bind", "source": "/b", "options": ["rbind", "rslave"]},
    ]}));
    assert_eq!(
        plan.setup.mounts[0].propagation,
        libc::MS_PRIVATE | libc::MS_REC
    );
    assert_eq!(
        plan.setup.mounts[1].propagation,
        libc::MS_SLAVE | libc::MS_REC
    );
}

#[test]
fn the_spec_without_capabilities_gives_none() {
    let process = planned(json!({})).process;
    assert_eq!(process.capabilities, Some(wire::Capabilities::default()));
    assert_eq!(process.stdio, [1, 2, 3]);
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    for (extra, field) in [
        (
            json!({"hooks": {"startContainer": [{"path": "/bin/true"}]}}),
            "hooks.startContainer",
        ),
        (
            json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}}}),
            "linux.seccomp SCMP_ACT_NOTIFY",
        ),
        (
            json!({"linux": {"namespaces": [{"type": "user"}]}}),
            "linux.namespaces user",
        ),
        (
            json!({"process": {"selinuxLabel": "a:b"}}),
            "process.selinuxLabel",
        ),
        (
            json!({"process": {"apparmorProfile": "docker"}}),
            "process.apparmorProfile",
        ),
        (
            json!({"mounts": [{"destination": "/x", "type": "tmpfs", "options": ["tmpcopyup"]}]}),
            "mounts[0] (/x) option tmpcopyup",
        ),
    ] {
        let text = refusal(extra);
        assert!(
            text.starts_with(&format!("{field} is not supported")),
            "{text}"
        );
    }
}

#[test]
fn a_bind_without_a_source_is_invalid() {
    let text = refusal(json!({"mounts": [{"destination": "/x", "type": "bind"}]}));
    assert_eq!(text, "mounts[0] (/x) is invalid: a bind has no source");
}

#[test]
fn the_cgroup_is_the_specs_or_named_after_the_container() {
    let plan = planned(
        json!({"linux": {"cgroupsPath": "/default/c1", "resources": {"pids": {"limit": 7}}}}),
    );
    assert_eq!(plan.cgroup.path, Path::new("default/c1"));
    assert_eq!(plan.cgroup.resources.pids().map(|p| p.limit()), Some(7));
    assert_eq!(planned(json!({})).cgroup.path, Path::new("hpk/id"));
}

fn with_cgroup_mount() -> Container {
    planned(json!({"mounts": [
        {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ]}))
}

fn view(name: Option<&str>, path: &str) -> hpk_cgroup::View {
    hpk_cgroup::View {
        name: name.map(str::to_owned),
        path: path.into(),
    }
}

fn destinations(plan: &Container) -> Vec<&str> {
    plan.setup
        .mounts
        .iter()
        .map(|m| m.destination.as_str())
        .collect()
}

#[test]
fn a_container_sees_its_own_v1_cgroups_below_a_tmpfs_that_ends_up_read_only() {
    let mut plan = with_cgroup_mount();
    plan.show_cgroup(&[
        view(Some("memory"), "/sys/fs/cgroup/memory/default/c1"),
        view(Some("pids"), "/sys/fs/cgroup/pids/default/c1"),
    ]);
    assert_eq!(
        destinations(&plan),
        [
            "/sys",
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/memory",
            "/sys/fs/cgroup/pids",
            "/tmp"
        ]
    );
    assert_eq!(plan.setup.mounts[1].flags, libc::MS_NOSUID);
    assert_eq!(
        plan.setup.mounts[2].flags,
        libc::MS_NOSUID | libc::MS_RDONLY
    );
    assert_eq!(plan.setup.readonly_paths, ["/sys/fs/cgroup"]);
    let last = plan.sources.last().unwrap();
    assert_eq!(last.path, Path::new("/sys/fs/cgroup/pids/default/c1"));
    assert_eq!(
        plan.setup.mounts[3].tree,
        Some(3 + plan.sources.len() as u32)
    );
}

#[test]
fn a_container_sees_its_own_v2_cgroup_in_place_of_the_whole_tree() {
    let mut plan = with_cgroup_mount();
    plan.show_cgroup(&[view(None, "/sys/fs/cgroup/default/c1")]);
    assert_eq!(destinations(&plan), ["/sys", "/sys/fs/cgroup", "/tmp"]);
    assert_eq!(plan.setup.mounts[1].source, "/sys/fs/cgroup/default/c1");
    assert!(!plan.sources.last().unwrap().recursive);
}

#[test]
fn a_container_without_a_cgroup_sees_the_outer_ones_read_only() {
    let mut plan = with_cgroup_mount();
    plan.show_cgroup(&[]);
    let mount = &plan.setup.mounts[1];
    assert_eq!(mount.source, "/sys/fs/cgroup");
    assert!(mount.recursive_flags && mount.flags & libc::MS_RDONLY != 0);
    assert!(plan.sources.last().unwrap().recursive);
}

#[test]
fn the_roots_propagation_is_applied_last_and_a_wrong_one_refused() {
    let root = |name: &str| planned(json!({"linux": {"rootfsPropagation": name}})).setup;
    let shared = libc::MS_SHARED | libc::MS_REC;
    assert_eq!(root("rshared").root_propagation, shared);
    assert_eq!(root("unbindable").root_propagation, libc::MS_UNBINDABLE);
    for private in ["", "private", "rprivate"] {
        assert_eq!(root(private).root_propagation, 0);
    }
    let text = refusal(json!({"linux": {"rootfsPropagation": "everywhere"}}));
    assert!(
        text.starts_with("linux.rootfsPropagation is invalid: \"everywhere\""),
        "{text}"
    );
}

#[test]
fn nothing_is_mounted_over_the_root_itself() {
    for destination in ["/", "", "/.", "/x/..", "//", "../"] {
        let text = refusal(json!({"mounts": [{"destination": destination, "type": "tmpfs"}]}));
        assert!(text.contains("the root itself"), "{destination:?}: {text}");
    }
    let plan = planned(json!({"mounts": [{"destination": "/x/../y", "type": "tmpfs"}]}));
    assert_eq!(plan.setup.mounts[0].destination, "/x/../y");
}

#[test]
fn what_the_kernel_would_cut_or_cover_in_vain_is_refused_by_its_name() {
    let device = |path: &str, major: u32, minor: u32| json!({"linux": {"devices": [{"path": path, "type": "c", "major": major, "minor": minor}]}});
    let bind = json!({"destination": "/x", "type": "bind", "source": "/s", "options": ["bind", "nonsense"]});
    let own_uts = json!([{"type": "uts"}, {"type": "mount"}]);
    for (extra, wanted) in [
        (device("/dev/x", 4096, 0), "linux.devices /dev/x major"),
        (device("/dev/x", 1, 1 << 20), "linux.devices /dev/x minor"),
        (
            device("/dev/null", 1, 5),
            "linux.devices /dev/null is invalid: it is 1:5, and 1:3",
        ),
        (
            json!({"mounts": [bind]}),
            "mounts[0] (/x) is invalid: a bind has no option \"nonsense\"",
        ),
        (
            json!({"linux": {"maskedPaths": ["/proc/kcore", "/"]}}),
            "linux.maskedPaths",
        ),
        (
            json!({"linux": {"readonlyPaths": ["/etc/.."]}}),
            "linux.readonlyPaths",
        ),
        (
            json!({"process": {"user": {"umask": 0o1000}}}),
            "process.user.umask",
        ),
        (json!({"root": {"path": ""}}), "root.path"),
        (
            json!({"domainname": "d".repeat(65), "linux": {"namespaces": own_uts}}),
            "domainname",
        ),
    ] {
        let text = refusal(extra);
        assert!(text.starts_with(wanted), "{text}");
    }
    // A default device may be listed again as what it is.
    assert_eq!(planned(device("/dev/null", 1, 3)).setup.devices.len(), 6);
}
