//! Pinned namespaces on a real kernel. `cargo test -p hpk-cni-client -- --ignored`.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use hpk_cni_client::netns;

const INSIDE: &str = "HPK_KERNEL_TEST";

/// Runs this test again in namespaces of its own, as `root` of a user
/// namespace, or returns true if it is there.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let output = Command::new("timeout")
        .args([
            "30",
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "--net",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}{errors}");
    false
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}");
    text
}

#[test]
#[ignore = "needs user namespaces and iproute2"]
fn a_namespace_is_pinned_with_loopback_up_and_removed_twice() {
    if !is_inside("a_namespace_is_pinned_with_loopback_up_and_removed_twice") {
        return;
    }
    sh("mount -t tmpfs tmpfs /run");
    let path = Path::new("/run/netns/pod1");
    netns::create(path).unwrap();
    assert!(netns::is_pinned(path).unwrap());
    let before = sh("stat -L -c %i /run/netns/pod1");
    assert!(sh("ip -n pod1 link show dev lo").contains("UP"));
    sh("ip netns exec pod1 ping -c1 -W1 127.0.0.1");
    netns::create(path).unwrap();
    assert_eq!(sh("stat -L -c %i /run/netns/pod1"), before, "kept as it is");
    assert_ne!(sh("stat -L -c %i /proc/self/ns/net"), before, "not ours");
    netns::remove(path).unwrap();
    netns::remove(path).unwrap();
    assert!(!path.exists());
    assert!(!netns::is_pinned(path).unwrap());
}

#[test]
#[ignore = "needs user namespaces and iproute2"]
fn many_made_at_once_are_all_there() {
    if !is_inside("many_made_at_once_are_all_there") {
        return;
    }
    sh("mount -t tmpfs tmpfs /run");
    let paths: Vec<_> = (0..20).map(|i| format!("/run/netns/p{i}")).collect();
    std::thread::scope(|scope| {
        for path in &paths {
            scope.spawn(move || netns::create(Path::new(path)).unwrap());
        }
    });
    for path in &paths {
        assert!(netns::is_pinned(Path::new(path)).unwrap(), "{path}");
        netns::remove(Path::new(path)).unwrap();
    }
}

#[test]
#[ignore = "needs user namespaces and iproute2"]
fn a_folder_that_can_not_be_made_is_named() {
    if !is_inside("a_folder_that_can_not_be_made_is_named") {
        return;
    }
    let error = netns::create(Path::new("/proc/nowhere/x")).unwrap_err();
    assert!(error.to_string().contains("/proc/nowhere/x"));
}
