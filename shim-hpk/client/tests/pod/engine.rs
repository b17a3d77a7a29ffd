//! What the shim runs is killed, or kept.

use std::{path::Path, time::Duration};

use crate::{
    lone::Lone,
    processes::{children, kill, nothing_is_left},
    scene::{Pod, Scene},
};

/// Apptainer, its helpers, `hpk-pause init`: whoever the shim has started by then.
#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn what_a_create_runs_can_be_killed_at_any_moment() {
    let (scene, _events) = Scene::new("engine");
    let mut failed = 0;
    for n in 0..30u64 {
        let lone = Lone::new(&scene, format!("engine{n}")).await;
        let (shim, id) = (&lone.shim, lone.id.as_str());
        let killing = async {
            tokio::time::sleep(Duration::from_millis(n * 4)).await;
            for child in children(lone.shim_pid) {
                // It may have ended since.
                let _ = std::process::Command::new("kill")
                    .args(["-9", &child.to_string()])
                    .status();
            }
        };
        let (created, ()) = tokio::join!(shim.create(lone.request()), killing);
        match created {
            Err(e) => {
                failed += 1;
                assert!(!e.to_string().is_empty());
                assert!(shim.state(id, "").await.unwrap_err().is_not_found());
            }
            Ok(_) => {
                // Killed after that, or not yet there to be killed.
                let _ = shim.kill(id, "", 9, true).await;
                assert_eq!(shim.wait(id, "").await.unwrap().code, 137);
                shim.delete(id, "").await.unwrap();
            }
        }
        assert!(lone.is_forgotten());
        shim.shutdown(id).await.unwrap();
    }
    assert!(failed > 0, "no create was met");
    nothing_is_left(scene).await;
}

/// HPK_KEEP_ENGINE=1: Apptainer's process stays while the container runs, and goes with it.
#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn apptainers_process_stays_only_where_it_is_asked_to() {
    for kept in [false, true] {
        let (mut scene, _events) = Scene::new("keep");
        let value = if kept { "1" } else { "0" };
        scene
            .bootstrap
            .env
            .push(("HPK_KEEP_ENGINE".into(), value.into()));
        let pod = Pod::start(&scene, "sb").await;
        let pid = pod.run("app", &pod.app(&["sh", "-c", "exit 0"])).await;
        assert_eq!(pod.shim.wait("app", "").await.unwrap().code, 0);
        pod.shim.delete("app", "").await.unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        let script = "trap 'exit 7' TERM; while :; do sleep 0.05; done";
        let pid = pod.run("app2", &pod.app(&["sh", "-c", script])).await;
        let shim_pid = pod.shim.connection("app2").await.unwrap().shim_pid;
        let engines: Vec<u32> = children(shim_pid)
            .into_iter()
            .filter(|child| {
                let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap();
                String::from_utf8_lossy(&line).starts_with("Apptainer runtime parent")
            })
            .collect();
        // The sandbox's and the container's.
        assert_eq!(engines.len(), if kept { 2 } else { 0 });
        assert_eq!(children(shim_pid).contains(&pid), !kept);
        // Its exit code passes through Apptainer.
        pod.shim.kill("app2", "", 15, false).await.unwrap();
        assert_eq!(pod.shim.wait("app2", "").await.unwrap().code, 7);
        pod.shim.delete("app2", "").await.unwrap();
        let pid = pod.run("app3", &pod.app(&["sleep", "7654321"])).await;
        if kept {
            // Apptainer's end is the container's.
            let of_app3 = engine_of(pid);
            kill(of_app3);
        } else {
            kill(pid);
        }
        assert_eq!(pod.shim.wait("app3", "").await.unwrap().code, 137);
        pod.shim.delete("app3", "").await.unwrap();
        pod.end().await;
        nothing_is_left(scene).await;
    }
}

/// The kept Apptainer above a container's process.
fn engine_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after) = stat.rsplit_once(')').unwrap();
    after.split_whitespace().nth(1).unwrap().parse().unwrap()
}
