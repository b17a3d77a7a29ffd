//! Pods' lives: one from its sandbox to its end, and many beside each other.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use hpk_shim_client::{Event, EventKind, Shim, Stdio, TaskStatus, read_address};

use crate::scene::{Pod, Scene, process};

fn describe(event: &Event) -> String {
    match &event.kind {
        EventKind::Create { id, .. } => format!("create {id}"),
        EventKind::Start { id, .. } => format!("start {id}"),
        EventKind::ExecAdded { exec_id, .. } => format!("exec-added {exec_id}"),
        EventKind::ExecStarted { exec_id, .. } => format!("exec-started {exec_id}"),
        EventKind::Exit {
            id, exec_id, code, ..
        } => format!("exit {id}{exec_id} {code}"),
        EventKind::Delete { id, .. } => format!("delete {id}"),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn a_pod_lives_and_dies_through_one_shim() {
    let (scene, mut events) = Scene::new("pod");
    let from = Instant::now();
    let pod = Pod::start(&scene, "sb").await;
    println!("sandbox up after {:?}", from.elapsed());
    let shim = &pod.shim;
    let script =
        "echo to stdout; echo to stderr >&2; trap 'exit 6' TERM; while :; do sleep 0.05; done";
    let app = pod.app(&["sh", "-c", script]);
    let (out, reading) = scene.output("app.out");
    let stdio = Stdio {
        stdout: out.clone(),
        stderr: out,
        ..Stdio::default()
    };
    let from = Instant::now();
    let pid = pod.create("app", &app, stdio).await.unwrap();
    println!("create {:?}", from.elapsed());
    assert_eq!(
        shim.state("app", "").await.unwrap().status,
        TaskStatus::Created
    );
    let from = Instant::now();
    assert_eq!(shim.start_task("app", "").await.unwrap(), pid);
    println!("start {:?}", from.elapsed());

    for (kind, shared) in [
        ("net", true),
        ("ipc", true),
        ("uts", true),
        ("pid", false),
        ("mnt", false),
    ] {
        let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(of(pid) == of(pod.pid), shared, "{kind}");
    }
    assert!(
        !std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .contains("s3cr3t")
    );

    let look = process(&["sh", "-c", "hostname; ls /sys/class/net; exit 9"]);
    let (code, text) = pod.exec("e1", look).await;
    assert_eq!((code, text.as_str()), (9, "pod-0\nlo\n"));
    let mut times = Vec::new();
    for n in 0..20 {
        let exec_id = format!("t{n}");
        let from = Instant::now();
        pod.start_exec(&exec_id, process(&["true"]), Stdio::default())
            .await;
        assert_eq!(pod.end_exec(&exec_id).await, 0);
        times.push(from.elapsed());
    }
    times.sort();
    println!("exec true p50 {:?} max {:?}", times[10], times[19]);
    let (code, _) = pod
        .exec("e2", process(&["sh", "-c", "kill -KILL $$"]))
        .await;
    assert_eq!(code, 137);

    let pids = shim.pids("app").await.unwrap();
    assert!(pids.contains(&pid), "{pids:?}");
    if scene.is_ours() {
        let stats = shim.stats("app").await.unwrap();
        assert!(stats.memory_bytes > 0, "{stats:?}");
    }

    // Adoption: another connection from what the bundle remembers.
    let address = read_address(&scene.dir.join("app")).unwrap().unwrap();
    let adopted = Shim::connect(&address).await.unwrap();
    assert_eq!(
        adopted.state("app", "").await.unwrap().status,
        TaskStatus::Running
    );
    let shim_pid = adopted.connection("app").await.unwrap().shim_pid;
    let status = std::fs::read_to_string(format!("/proc/{shim_pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|rest| rest.split_whitespace().next());
    let kib: u64 = kib.unwrap().parse().unwrap();
    println!("shim: {kib} KiB resident");
    assert!(kib <= 5_000_000 / 1024 || !scene.is_ours(), "{status}");

    let refused = adopted.delete("app", "").await.unwrap_err();
    assert!(
        refused.is_failed_precondition() || !scene.is_ours(),
        "{refused:?}"
    );
    let unknown = adopted.state("nobody", "").await.unwrap_err();
    assert!(unknown.is_not_found());
    adopted.kill("app", "", 15, false).await.unwrap();
    assert_eq!(shim.wait("app", "").await.unwrap().code, 6);
    assert_eq!(shim.delete("app", "").await.unwrap().code, 6);
    assert_eq!(reading.join().unwrap(), "to stdout\nto stderr\n");
    shim.kill("sb", "", 15, false).await.unwrap();
    assert_eq!(
        shim.wait("sb", "").await.unwrap().code,
        0,
        "hpk-pause ends on SIGTERM"
    );
    shim.delete("sb", "").await.unwrap();
    shim.shutdown("sb").await.unwrap();
    for _ in 0..100 {
        if !Path::new(&format!("/proc/{shim_pid}/exe")).exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(Shim::connect(&address).await.unwrap_err().is_gone());

    let mut seen = Vec::new();
    while let Ok(Some(event)) =
        tokio::time::timeout(Duration::from_millis(300), events.recv()).await
    {
        seen.push(describe(&event));
    }
    let of_execs = ["exec", "exit appe", "exit appt"];
    let app: Vec<&str> = seen
        .iter()
        .map(String::as_str)
        .filter(|e| e.contains("app") && !of_execs.iter().any(|own| e.contains(own)))
        .collect();
    assert_eq!(
        app,
        ["create app", "start app", "exit app 6", "delete app"],
        "{seen:?}"
    );
    drop(pod);
    scene.remove();
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn ten_containers_at_once_neither_mix_up_nor_hold_each_other_up() {
    let (scene, _events) = Scene::new("ten");
    let pod = Pod::start(&scene, "sb").await;
    let from = Instant::now();
    let ids: Vec<String> = (0..10).map(|n| format!("many{n}")).collect();
    let all = ids.iter().enumerate().map(|(n, id)| {
        let pod = &pod;
        async move {
            let spec = pod.app(&["sh", "-c", &format!("exit {n}")]);
            pod.run(id, &spec).await;
            let code = pod.shim.wait(id, "").await.unwrap().code;
            pod.shim.delete(id, "").await.unwrap();
            code
        }
    });
    let codes = join_all(all).await;
    assert_eq!(codes, (0..10).collect::<Vec<u32>>());
    println!("ten containers at once {:?}", from.elapsed());
    pod.end().await;
    scene.remove();
}

/// Runs futures together.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, output) in running.iter_mut().filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(context) {
                std::task::Poll::Ready(value) => *output = Some(value),
                std::task::Poll::Pending => pending = true,
            }
        }
        if pending {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    running
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

/// Of /proc/meminfo, in kB.
fn available_kb() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find(|l| l.starts_with("MemAvailable:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn twenty_pods_fit_and_go() {
    let (scene, _events) = Scene::new("many");
    let warm = Pod::start(&scene, "warm").await;
    let before = available_kb();
    let from = Instant::now();
    let mut pods = Vec::new();
    for n in 0..20 {
        let pod = Pod::start(&scene, &format!("sb{n}")).await;
        let app = format!("app{n}");
        pod.run(&app, &pod.app(&["sleep", "1000"])).await;
        pods.push((pod, app));
    }
    println!("20 pods after {:?}", from.elapsed());
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!(
        "{} kB of the machine's memory a pod",
        (before - available_kb()) / 20
    );
    for (pod, app) in pods {
        pod.remove(&app).await;
        pod.end().await;
    }
    warm.end().await;
    scene.remove();
}
