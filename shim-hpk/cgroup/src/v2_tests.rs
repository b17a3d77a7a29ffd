//! Version 2: in a folder that has the files a kernel would have, and in this kernel's own tree, where
//! that can be mounted. The controllers of most machines at hand are on v1: the tree then has the
//! files that need no controller, and few others.

use std::process::{Child, Command};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use super::*;

fn hierarchy(mount: &Path, controllers: &[&str]) -> Hierarchy {
    Hierarchy {
        version: Version::V2,
        controllers: controllers.iter().map(|&c| c.to_owned()).collect(),
        mount: mount.to_owned(),
        own: PathBuf::new(),
    }
}

fn request(path: impl Into<PathBuf>, resources: serde_json::Value) -> Request {
    Request {
        path: path.into(),
        resources: serde_json::from_value(resources).unwrap(),
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

/// A folder with the container's own cgroup in it, which exists already: a kernel fills a new one.
fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let mount = tempfile::tempdir().unwrap();
    let leaf = mount.path().join("pod/c1");
    std::fs::create_dir_all(&leaf).unwrap();
    for (name, text) in [("cgroup.procs", "")].iter().chain(files) {
        std::fs::write(leaf.join(name), text).unwrap();
    }
    (mount, leaf)
}

#[test]
fn limits_are_written_where_v2_has_them() {
    let (mount, leaf) = folder(&[]);
    let asked = json!({
        "memory": {"limit": 1000, "swap": 1500, "reservation": 800},
        "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0-1"},
        "pids": {"limit": 7},
        "unified": {"memory.high": "900"},
    });
    let controllers = ["cpu", "cpuset", "memory", "pids"];
    let (cgroup, warnings) = Cgroup::make(
        &[hierarchy(mount.path(), &controllers)],
        &request("pod/c1", asked),
    )
    .unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(cgroup.version(), Some(Version::V2));
    for (file, value) in [
        ("memory.max", "1000"),
        ("memory.swap.max", "500"),
        ("memory.low", "800"),
        ("memory.high", "900"),
        ("cpu.weight", "39"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "7"),
    ] {
        assert_eq!(read(&leaf.join(file)), value, "{file}");
    }
    // A plain file keeps the last of what each parent was told to hand on.
    for parent in [mount.path(), &mount.path().join("pod")] {
        assert_eq!(read(&parent.join("cgroup.subtree_control")), "+pids");
    }
    assert!(!leaf.join("cgroup.subtree_control").exists());
    cgroup.join(4711).unwrap();
    assert_eq!(read(&leaf.join("cgroup.procs")), "4711");
}

#[test]
fn a_limit_of_a_controller_that_was_not_handed_on_is_named() {
    let (mount, _) = folder(&[]);
    let asked = json!({"memory": {"limit": 1000}, "pids": {"limit": 7}});
    let (_, warnings) = Cgroup::make(
        &[hierarchy(mount.path(), &["pids"])],
        &request("pod/c1", asked),
    )
    .unwrap();
    assert_eq!(
        warnings,
        [
            "linux.resources.memory.limit is not enforced: no cgroup of the controller memory may be made here"
        ]
    );
}

#[tokio::test]
async fn freezing_waits_for_what_v2_says_of_it() {
    let (mount, leaf) = folder(&[("cgroup.events", "populated 1\nfrozen 0\n")]);
    let (cgroup, _) = Cgroup::make(
        &[hierarchy(mount.path(), &[])],
        &request("pod/c1", json!({})),
    )
    .unwrap();
    let told = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert_eq!(read(&leaf.join("cgroup.freeze")), "1");
        std::fs::write(leaf.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        true
    };
    let (frozen, told) = tokio::join!(cgroup.freeze(), told);
    frozen.unwrap();
    assert!(told);
    cgroup.thaw().unwrap();
    assert_eq!(read(&leaf.join("cgroup.freeze")), "0");
}

/// The kernel's tree, mounted for a test.
struct Tree(tempfile::TempDir);

impl Tree {
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        mount(
            Some("cgroup2"),
            directory.path(),
            Some("cgroup2"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
        Self(directory)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root and a mount namespace: scripts/kernel-tests"]
async fn the_kernels_own_tree_does_as_it_is_told() {
    let tree = Tree::mount();
    let root = tree.0.path();
    let controllers = read(&root.join("cgroup.controllers"));
    let controllers: Vec<&str> = controllers.split(' ').collect();
    let name = format!("hpk-v2-test-{}", std::process::id());
    let asked = json!({
        "memory": {"limit": 67_108_864},
        "pids": {"limit": 50},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}],
    });
    let hierarchies = [hierarchy(root, &controllers)];
    let (cgroup, warnings) =
        Cgroup::make(&hierarchies, &request(format!("{name}/c1"), asked)).unwrap();
    let leaf = root.join(&name).join("c1");
    for (controller, file, value) in [
        ("memory", "memory.max", "67108864"),
        ("pids", "pids.max", "50"),
        ("hugetlb", "hugetlb.2MB.max", "4194304"),
    ] {
        let had = controllers.contains(&controller);
        let named = warnings.iter().any(|w| w.contains(controller));
        assert_eq!(named, !had, "{controller}: {warnings:?}");
        if had {
            assert_eq!(read(&leaf.join(file)), value);
        }
    }

    let spinning = Command::new("sh")
        .args(["-c", "while :; do :; done"])
        .spawn();
    let program = Program(spinning.unwrap());
    let pid = program.0.id();
    cgroup.join(pid as i32).unwrap();
    assert_eq!(read(&leaf.join("cgroup.procs")), pid.to_string());
    let second = Cgroup::make(&hierarchies, &request(format!("{name}/c1"), json!({})));
    let error = second.unwrap_err().to_string();
    assert!(error.contains("processes are in it"), "{error}");

    // Every cgroup of v2 has it.
    let used = || -> u64 {
        let text = read(&leaf.join("cpu.stat"));
        let first = text.lines().next().unwrap();
        first.strip_prefix("usage_usec ").unwrap().parse().unwrap()
    };
    let counted = tokio::time::timeout(REMOVE_LIMIT, async {
        while used() == 0 {
            tokio::time::sleep(REMOVE_POLL).await;
        }
    });
    counted.await.expect("its time is counted");
    cgroup.freeze().await.unwrap();
    assert!(read(&leaf.join("cgroup.events")).contains("frozen 1"));
    let frozen_at = used();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(used(), frozen_at);
    // v2 kills what is frozen.
    drop(program);
    cgroup.thaw().unwrap();
    cgroup.remove().await;
    assert!(!root.join(&name).exists());
}

#[test]
#[ignore = "needs root and a mount namespace: scripts/kernel-tests"]
fn below_a_cgroup_with_processes_one_can_be_made_and_entered() {
    let tree = Tree::mount();
    let root = tree.0.path();
    let controllers = read(&root.join("cgroup.controllers"));
    let controllers: Vec<&str> = controllers.split(' ').collect();
    let above = root.join(format!("hpk-v2-busy-{}", std::process::id()));
    std::fs::create_dir(&above).unwrap();
    let sleeping = || Program(Command::new("sleep").arg("60").spawn().unwrap());
    let (first, second) = (sleeping(), sleeping());
    std::fs::write(above.join("cgroup.procs"), first.0.id().to_string()).unwrap();
    let path = above.strip_prefix(root).unwrap().join("c1");
    let asked = json!({"cpu": {"shares": 1024}});
    let (cgroup, warnings) =
        Cgroup::make(&[hierarchy(root, &controllers)], &request(path, asked)).unwrap();
    assert!(
        warnings[0].contains("cpu.shares is not enforced"),
        "{warnings:?}"
    );
    assert_eq!(read(&above.join("c1/cgroup.type")), "domain");
    cgroup.join(second.0.id() as i32).unwrap();
    drop((first, second));
    std::fs::remove_dir(above.join("c1")).unwrap();
    std::fs::remove_dir(above).unwrap();
}
