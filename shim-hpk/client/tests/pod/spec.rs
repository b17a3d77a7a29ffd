//! A container is what its spec says, or refused by the name of what can't be had.

use std::{path::Path, time::Duration};

use hpk_shim_client::{Stdio, TaskStatus};
use serde_json::{Value, json};

use crate::scene::{Pod, Scene, has_all_users, process};

/// Prints what the container is, a line each.
const LOOK: &str = "
    grep -E '^(Uid|Gid|Groups|NoNewPrivs|CapEff|CapBnd):' /proc/1/status | tr '\\t' ' '
    cat /proc/1/oom_score_adj; grep 'open files' /proc/1/limits | tr -s ' '
    cat /vol/ro/file /etc/hosts; echo
    touch /vol/ro/x 2>/dev/null && echo written; touch /vol/ro/deep/x 2>/dev/null && echo written
    touch /vol/rw/new && echo ok; touch /root-is-writable 2>/dev/null && echo written
    touch /mem/x && echo mem; touch /dev/shm/x && echo shm
    cat /proc/sys/net/ipv4/ip_unprivileged_port_start
    echo 1 2>/dev/null >/proc/sys/net/ipv4/ip_forward && echo sysctl-writable
    ls /proc/keys; cat /proc/keys | wc -c; ls -d /.singularity.d /environment 2>/dev/null
    ls -1 /dev | tr '\\n' ' '";

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn a_container_is_what_its_spec_says() {
    let (scene, _events) = Scene::new("spec");
    let pod = Pod::start(&scene, "sb").await;
    let volume = scene.dir.join("volume");
    std::fs::create_dir_all(volume.join("deep")).unwrap();
    std::fs::write(volume.join("file"), "data").unwrap();
    let mut spec = pod.app(&["sleep", "1000"]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/vol/ro", "type": "bind", "source": volume, "options": ["rbind", "ro"]}));
    mounts.push(json!({"destination": "/vol/rw", "type": "bind", "source": volume, "options": ["rbind", "rw"]}));
    mounts.push(json!({"destination": "/etc/hosts", "type": "bind", "source": volume.join("file"), "options": ["bind", "ro"]}));
    mounts.push(json!({"destination": "/mem", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=1777"]}));
    spec["root"]["readonly"] = json!(true);
    spec["process"]["user"] =
        json!({"uid": 1234, "gid": 2345, "additionalGids": [3456], "umask": 0o077});
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    spec["process"]["noNewPrivileges"] = json!(true);
    spec["process"]["oomScoreAdj"] = json!(500);
    spec["process"]["cwd"] = json!("/made/by/runtime");
    spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "81"});
    pod.run("app", &spec).await;

    let (code, text) = pod.exec("look", process(&["sh", "-c", LOOK])).await;
    assert_eq!(code, 0, "{text}");
    let want = "Uid: 1234 1234 1234 1234\nGid: 2345 2345 2345 2345\nGroups: 3456 \n";
    assert!(text.starts_with(want), "{text}");
    for line in [
        "CapEff: 0000000000000000",
        "CapBnd: 00000000000004e1",
        "NoNewPrivs: 1",
        "500",
        "Max open files 100 200 files ",
        "datadata",
        "ok",
        "mem",
        "shm",
        "81",
        "/proc/keys",
        "0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} in {text}");
    }
    for line in [
        "written",
        "sysctl-writable",
        "/.singularity.d",
        "/environment",
    ] {
        assert!(!text.lines().any(|l| l == line), "{line:?} in {text}");
    }
    assert!(text.contains("core") || text.contains("fd "), "{text}");
    println!("{}", text.lines().last().unwrap_or_default());

    // What only its own user may see: nothing but the three streams is open.
    let mut own = process(&["sh", "-c", "readlink /proc/1/cwd; ls /proc/1/fd | wc -w"]);
    own["user"] = json!({"uid": 1234, "gid": 2345});
    let seen = pod.exec("own", own).await;
    assert_eq!(seen, (0, "/made/by/runtime\n3\n".to_owned()));

    // An exec is as its own process says.
    let mut other = process(&["sh", "-c", "id -u; pwd; ulimit -n; exit 3"]);
    other["user"] = json!({"uid": 77, "gid": 78});
    other["cwd"] = json!("/vol");
    let (code, text) = pod.exec("as77", other).await;
    assert_eq!(code, 3);
    assert!(text.starts_with("77\n/vol\n"), "{text}");

    pod.remove("app").await;
    pod.end().await;
    scene.remove();
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn a_shared_pid_namespace_is_joined() {
    let (scene, _events) = Scene::new("pid");
    let pod = Pod::start(&scene, "sb").await;
    let shim = &pod.shim;
    let mut spec = pod.app(&["sh", "-c", "sleep 1000 & wait"]);
    spec["linux"]["namespaces"][0]["path"] = json!(format!("/proc/{}/ns/pid", pod.pid));
    let pid = pod.run("app", &spec).await;
    let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_eq!(of(pid), of(pod.pid));
    let ps = process(&["sh", "-c", "cat /proc/1/comm; ps | grep -c '[s]leep 1000'"]);
    let (code, text) = pod.exec("ps", ps).await;
    assert_eq!(
        (code, text.trim()),
        (0, "hpk-pause\n2"),
        "the shell and its child"
    );
    let before = shim.pids("app").await.unwrap();
    assert_eq!(before.len(), 2, "{before:?}");
    shim.kill("app", "", 9, false).await.unwrap();
    assert_eq!(shim.wait("app", "").await.unwrap().code, 137);
    shim.delete("app", "").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    for pid in before {
        assert!(
            !Path::new(&format!("/proc/{pid}/root/bin")).exists(),
            "{pid} lives"
        );
    }
    assert_eq!(
        shim.state("sb", "").await.unwrap().status,
        TaskStatus::Running
    );
    pod.end().await;
    scene.remove();
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn what_fails_is_named_and_leaves_nothing() {
    let (scene, _events) = Scene::new("fail");
    let pod = Pod::start(&scene, "sb").await;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut spec = pod.app(&["sleep", "1000"]);
        change(&mut spec);
        spec
    };
    let mut cases = vec![
        (
            "no-source",
            with(&|s| {
                s["mounts"].as_array_mut().unwrap().push(json!({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["rbind"]}))
            }),
            "/no/such/source",
        ),
        (
            "no-program",
            with(&|s| s["process"]["args"] = json!(["no-such-program"])),
            "no-such-program",
        ),
        (
            "no-netns",
            with(&|s| s["linux"]["namespaces"][2]["path"] = json!("/no/such/netns")),
            "/no/such/netns",
        ),
        (
            "hook",
            with(&|s| s["hooks"] = json!({"createRuntime": [{"path": "/no/such/hook"}]})),
            if scene.is_ours() {
                "hooks.createRuntime"
            } else {
                "hook"
            },
        ),
    ];
    if scene.is_ours() && !has_all_users() {
        cases.push((
            "bad-user",
            with(&|s| s["process"]["user"]["uid"] = json!(4_000_000_000u32)),
            "4000000000",
        ));
    }
    for (id, spec, word) in cases {
        let error = pod.create(id, &spec, Stdio::default()).await.unwrap_err();
        let text = error.shim_message().unwrap_or_default();
        println!("{id}: {text}");
        assert!(text.contains(word), "{id}: {error:?}");
        let unknown = pod.shim.state(id, "").await.unwrap_err();
        assert!(unknown.is_not_found(), "{id}");
        if scene.is_ours() {
            assert!(!scene.dir.join(id).join("hpk.json").exists(), "{id}");
        }
    }
    pod.end().await;
    scene.remove();
}
