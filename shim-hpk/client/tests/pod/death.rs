//! A shim that is killed, at rest and at work: its `delete` command cleans up.

use std::time::Duration;

use hpk_shim_client::{ExecRequest, Stdio, delete_binary};

use crate::{
    lone::Lone,
    processes::{kill, nothing_is_left},
    scene::{Pod, Scene, process},
};

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

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn a_shim_killed_in_the_middle_of_a_create_leaves_nothing() {
    let (scene, _events) = Scene::new("mid");
    for n in 0..24u64 {
        let lone = Lone::new(&scene, format!("mid{n}")).await;
        let creating = async {
            if lone.shim.create(lone.request()).await.is_ok() {
                let _ = lone.shim.start_task(&lone.id, "").await;
            }
        };
        let killing = async {
            tokio::time::sleep(Duration::from_millis(n * 5)).await;
            kill(lone.shim_pid);
        };
        tokio::join!(creating, killing);
        lone.clean_up().await;
    }
    nothing_is_left(scene).await;
}

/// Start, exec, pause, kill, delete: each with the shim killed in its midst.
#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn a_shim_killed_at_any_work_leaves_nothing() {
    let (scene, _events) = Scene::new("work");
    for (n, delay) in (0..25u64).map(|n| (n, n / 5 * 2)) {
        let lone = Lone::new(&scene, format!("work{n}")).await;
        let (shim, id) = (&lone.shim, lone.id.as_str());
        shim.create(lone.request()).await.unwrap();
        let work = async {
            // Each may fail: that its shim is gone is what is tried.
            let _ = match n % 5 {
                0 => shim.start_task(id, "").await.map(drop),
                1 => {
                    let _ = shim.start_task(id, "").await;
                    let request = ExecRequest {
                        id: id.to_owned(),
                        exec_id: "e".into(),
                        process: process(&["sleep", "7654321"]),
                        stdio: Stdio::default(),
                    };
                    let _ = shim.exec(request).await;
                    shim.start_task(id, "e").await.map(drop)
                }
                2 => {
                    let _ = shim.start_task(id, "").await;
                    shim.kill(id, "", 9, true).await
                }
                3 => shim.delete(id, "").await.map(drop),
                _ => shim.kill(id, "", 9, false).await,
            };
        };
        let killing = async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            kill(lone.shim_pid);
        };
        tokio::join!(work, killing);
        lone.clean_up().await;
    }
    nothing_is_left(scene).await;
}
