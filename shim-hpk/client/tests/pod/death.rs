//! A shim that is killed, at rest and at work: its `delete` command cleans up.

use std::time::Duration;

use hpk_shim_client::{Shim, Stdio, delete_binary};
use serde_json::json;

use crate::scene::{Pod, Scene, own_namespaces, spec};

fn kill(pid: u32) {
    let killed = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status();
    assert!(killed.unwrap().success());
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn delete_cleans_up_after_a_killed_shim() {
    let (scene, _events) = Scene::new("kill");
    let pod = Pod::start(&scene, "sb").await;
    let pid = pod
        .run("app", &pod.app(&["sh", "-c", "sleep 1000 & wait"]))
        .await;
    kill(pod.shim.connection("app").await.unwrap().shim_pid);
    // Each call says so, also those after the connection's end is known.
    for _ in 0..2 {
        let error = pod.shim.wait("app", "").await.unwrap_err();
        assert!(error.is_gone(), "{error:?}");
    }
    for id in ["app", "sb"] {
        let bundle = scene.dir.join(id);
        let exit = delete_binary(&scene.bootstrap, id, &bundle).await.unwrap();
        assert_eq!(exit.code, 137);
        delete_binary(&scene.bootstrap, id, &bundle).await.unwrap();
        assert!(!bundle.join("hpk.json").exists());
    }
    for pid in [pid, pod.pid] {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }
    drop(pod);
    scene.remove();
}

/// Processes that say one of `words` in their command line or name, zombies aside.
fn processes_with(words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let read = |name: &str| std::fs::read(path.join(name)).unwrap_or_default();
        let said =
            String::from_utf8_lossy(&[read("cmdline"), read("comm")].concat()).replace('\0', " ");
        let is_zombie = String::from_utf8_lossy(&read("stat")).contains(") Z ");
        if path.join("cmdline").exists() && !is_zombie && words.iter().any(|w| said.contains(w)) {
            found.push(said);
        }
    }
    found
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn a_shim_killed_in_the_middle_of_a_create_leaves_nothing() {
    let (scene, _events) = Scene::new("mid");
    for n in 0..24u64 {
        let id = format!("mid{n}");
        let bundle = scene.bundle(
            &id,
            &spec(&["sleep", "7654321"], own_namespaces(), json!({})),
        );
        let shim = Shim::start(&scene.bootstrap, &id, &bundle).await.unwrap();
        let shim_pid = shim.connection(&id).await.unwrap().shim_pid;
        let request = scene.request(&id, Stdio::default());
        let of_task = id.clone();
        let creating = tokio::spawn(async move {
            if shim.create(request).await.is_ok() {
                let _ = shim.start_task(&of_task, "").await;
            }
        });
        tokio::time::sleep(Duration::from_millis(n * 5)).await;
        kill(shim_pid);
        creating.await.unwrap();
        delete_binary(&scene.bootstrap, &id, &bundle).await.unwrap();
    }
    // Apptainer's last one may still be on its way to find out.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let left = processes_with(&["7654321", "hpk-init", &scene.dir.to_string_lossy()]);
    assert!(left.is_empty(), "{left:#?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*scene.dir.to_string_lossy()), "{mounts}");
    scene.remove();
}
