//! A pod through any runtime v2 shim, as the kubelet drives it: sandbox, app container in its
//! namespaces, exec, terminal, logger, adoption, events, a killed shim.
//!
//! Needs root in a user namespace or for real, and by environment: HPK_TEST_SHIM (a shim's binary),
//! HPK_TEST_ROOTFS (a directory with a busybox in it, copied), HPK_TEST_PAUSE (hpk-pause),
//! HPK_TEST_DIR (scratch space not on an overlay). With a shim named …runc… what only ours promises
//! (a logger started again, metrics without cgroups) is not asked for. Run with `--ignored --test-threads 1 --nocapture`.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use hpk_shim_client::{
    Bootstrap, CreateRequest, Event, EventKind, ExecRequest, Mount, Shim, Stdio, TaskStatus,
    delete_binary, read_address, serve_events,
};
use serde_json::{Value, json};

static COUNT: AtomicU32 = AtomicU32::new(0);

struct Scene {
    bootstrap: Bootstrap,
    dir: PathBuf,
    rootfs: PathBuf,
    pause: PathBuf,
}

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set"))
        .into()
}

fn scene(test: &str) -> Scene {
    let dir = variable("HPK_TEST_DIR").join(format!("{test}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    Scene {
        bootstrap: Bootstrap::new(
            variable("HPK_TEST_SHIM"),
            format!("hpk-test-{test}-{}", std::process::id()),
            dir.join("events.sock"),
        ),
        rootfs: variable("HPK_TEST_ROOTFS"),
        pause: variable("HPK_TEST_PAUSE"),
        dir,
    }
}

fn spec(args: &[&str], namespaces: Value, annotations: Value) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE"
    ]);
    json!({
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs"},
        "hostname": "pod-0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin", "SECRET=s3cr3t-value"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "annotations": annotations,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            // runc would else name it by the container's id alone.
            "cgroupsPath": format!("/hpk-test/{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/irq"],
        },
    })
}

impl Scene {
    fn bundle(&self, id: &str, spec: &Value) -> PathBuf {
        let bundle = self.dir.join(id);
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    /// An overlay over the test's root directory, as the kubelet makes of an image.
    fn overlay(&self, id: &str) -> Vec<Mount> {
        let (upper, work) = (
            self.dir.join(id).join("upper"),
            self.dir.join(id).join("work"),
        );
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir_all(&work).unwrap();
        let mut options = vec![
            format!("lowerdir={}", self.rootfs.display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ];
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        if !map.contains("4294967295") {
            options.push("userxattr".into());
        }
        vec![Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options,
        }]
    }

    fn is_ours(&self) -> bool {
        !self.bootstrap.binary.to_string_lossy().contains("runc")
    }

    async fn sandbox(&self, id: &str) -> Shim {
        let own = json!([{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}]);
        let annotations = json!({"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": id});
        let bundle = self.bundle(id, &spec(&["/hpk-pause"], own, annotations));
        std::fs::copy(&self.pause, bundle.join("rootfs/hpk-pause")).unwrap();
        let shim = Shim::start(&self.bootstrap, id, &bundle).await.unwrap();
        shim.create(CreateRequest::new(id, &bundle)).await.unwrap();
        shim.start_task(id, "").await.unwrap();
        shim
    }

    fn app_spec(&self, args: &[&str], sandbox: &str, sandbox_pid: u32) -> Value {
        let ns = |kind: &str| format!("/proc/{sandbox_pid}/ns/{kind}");
        let namespaces = json!([
            {"type": "pid"}, {"type": "mount"}, {"type": "network", "path": ns("net")},
            {"type": "ipc", "path": ns("ipc")}, {"type": "uts", "path": ns("uts")},
        ]);
        let annotations = json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox});
        spec(args, namespaces, annotations)
    }
}

fn fifo(path: &Path) -> String {
    let status = std::process::Command::new("mkfifo")
        .arg(path)
        .status()
        .unwrap();
    assert!(status.success());
    path.to_str().unwrap().to_owned()
}

/// Reads a FIFO to its end on a thread, which has it open (or waits in the open) before any writer comes.
fn reader(path: &str) -> std::thread::JoinHandle<String> {
    let path = path.to_owned();
    let (sender, receiver) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        sender.send(()).unwrap();
        std::fs::File::open(path)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    });
    receiver.recv().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    reading
}

fn process(args: &[&str]) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin"]})
}

async fn exec(shim: &Shim, scene: &Scene, id: &str, exec_id: &str, args: &[&str]) -> (u32, String) {
    let out = fifo(&scene.dir.join(format!("{exec_id}.out")));
    let reading = reader(&out);
    let stdio = Stdio {
        stdout: out.clone(),
        stderr: out,
        ..Stdio::default()
    };
    let request = ExecRequest {
        id: id.into(),
        exec_id: exec_id.into(),
        process: process(args),
        stdio,
    };
    shim.exec(request).await.unwrap();
    shim.start_task(id, exec_id).await.unwrap();
    let exit = shim.wait(id, exec_id).await.unwrap();
    shim.delete(id, exec_id).await.unwrap();
    (exit.code, reading.join().unwrap())
}

async fn remove(shim: &Shim, id: &str) {
    let _ = shim.kill(id, "", 9, false).await;
    shim.wait(id, "").await.unwrap();
    shim.delete(id, "").await.unwrap();
}

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
#[ignore = "needs a shim, root and a rootfs: see the file's head"]
async fn a_pod_lives_and_dies_through_one_shim() {
    let scene = scene("pod");
    let mut events = serve_events(&scene.bootstrap.ttrpc_address).unwrap();
    let from = Instant::now();
    let shim = scene.sandbox("sb").await;
    println!("sandbox up after {:?}", from.elapsed());
    let sandbox_pid = shim.state("sb", "").await.unwrap().pid;

    let app = scene.app_spec(
        &[
            "sh",
            "-c",
            "echo to stdout; echo to stderr >&2; trap 'exit 6' TERM; while :; do sleep 0.05; done",
        ],
        "sb",
        sandbox_pid,
    );
    let bundle = scene.bundle("app", &app);
    let from = Instant::now();
    let again = Shim::start(&scene.bootstrap, "app", &bundle).await.unwrap();
    println!("start for the second container {:?}", from.elapsed());
    assert_eq!(again.address(), shim.address(), "one shim a pod");
    let out = fifo(&scene.dir.join("app.out"));
    let reading = reader(&out);
    let stdio = Stdio {
        stdout: out.clone(),
        stderr: out,
        ..Stdio::default()
    };
    let request = CreateRequest {
        id: "app".into(),
        bundle: bundle.clone(),
        rootfs: scene.overlay("app"),
        stdio,
    };
    let from = Instant::now();
    let pid = shim.create(request).await.unwrap();
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
        assert_eq!(of(pid) == of(sandbox_pid), shared, "{kind}");
    }
    assert!(
        !std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .contains("s3cr3t")
    );

    let (code, text) = exec(
        &shim,
        &scene,
        "app",
        "e1",
        &["sh", "-c", "hostname; ls /sys/class/net; exit 9"],
    )
    .await;
    assert_eq!((code, text.as_str()), (9, "pod-0\nlo\n"));
    let mut times = Vec::new();
    for n in 0..20 {
        let request = ExecRequest {
            id: "app".into(),
            exec_id: format!("t{n}"),
            process: process(&["true"]),
            stdio: Stdio::default(),
        };
        let from = Instant::now();
        shim.exec(request).await.unwrap();
        shim.start_task("app", &format!("t{n}")).await.unwrap();
        assert_eq!(shim.wait("app", &format!("t{n}")).await.unwrap().code, 0);
        shim.delete("app", &format!("t{n}")).await.unwrap();
        times.push(from.elapsed());
    }
    times.sort();
    println!("exec true p50 {:?} max {:?}", times[10], times[19]);
    let (code, _) = exec(&shim, &scene, "app", "e2", &["sh", "-c", "kill -KILL $$"]).await;
    assert_eq!(code, 137);

    let pids = shim.pids("app").await.unwrap();
    assert!(pids.contains(&pid), "{pids:?}");
    if scene.is_ours() {
        let stats = shim.stats("app").await.unwrap();
        assert!(stats.memory_bytes > 0, "{stats:?}");
    }

    // Adoption: another connection from what the bundle remembers.
    let address = read_address(&bundle).unwrap().unwrap();
    let adopted = Shim::connect(&address).await.unwrap();
    assert_eq!(
        adopted.state("app", "").await.unwrap().status,
        TaskStatus::Running
    );
    let shim_pid = adopted.connection("app").await.unwrap().shim_pid;
    let status = std::fs::read_to_string(format!("/proc/{shim_pid}/status")).unwrap();
    println!(
        "shim: {}",
        status
            .lines()
            .filter(|l| l.starts_with("VmRSS")
                || l.starts_with("RssAnon")
                || l.starts_with("Threads"))
            .collect::<Vec<_>>()
            .join(", ")
    );

    let refused = adopted.delete("app", "").await.unwrap_err();
    assert!(
        refused.is_failed_precondition() || !scene.is_ours(),
        "{refused:?}"
    );
    assert!(
        adopted
            .state("nobody", "")
            .await
            .unwrap_err()
            .is_not_found()
    );
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
    let app: Vec<&str> = seen
        .iter()
        .map(String::as_str)
        .filter(|e| e.contains("app") && !e.contains("exec"))
        .collect();
    let app: Vec<&str> = app
        .into_iter()
        .filter(|e| !e.starts_with("exit appe") && !e.starts_with("exit appt"))
        .collect();
    assert_eq!(
        app,
        ["create app", "start app", "exit app 6", "delete app"],
        "{seen:?}"
    );
    std::fs::remove_dir_all(&scene.dir).unwrap();
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the file's head"]
async fn stdin_terminal_and_close_io() {
    let scene = scene("tty");
    let _events = serve_events(&scene.bootstrap.ttrpc_address).unwrap();
    let shim = scene.sandbox("sb").await;
    let sandbox_pid = shim.state("sb", "").await.unwrap().pid;
    let bundle = scene.bundle(
        "app",
        &scene.app_spec(&["sleep", "1000"], "sb", sandbox_pid),
    );
    let rootfs = scene.overlay("app");
    shim.create(CreateRequest {
        id: "app".into(),
        bundle,
        rootfs,
        stdio: Stdio::default(),
    })
    .await
    .unwrap();
    shim.start_task("app", "").await.unwrap();

    let (input, output) = (fifo(&scene.dir.join("in")), fifo(&scene.dir.join("out")));
    let reading = reader(&output);
    let stdio = Stdio {
        stdin: input.clone(),
        stdout: output.clone(),
        stderr: output,
        ..Stdio::default()
    };
    shim.exec(ExecRequest {
        id: "app".into(),
        exec_id: "cat".into(),
        process: process(&["cat"]),
        stdio,
    })
    .await
    .unwrap();
    shim.start_task("app", "cat").await.unwrap();
    let mut writer = std::fs::OpenOptions::new()
        .write(true)
        .open(&input)
        .unwrap();
    writer.write_all(b"through a fifo\n").unwrap();
    drop(writer);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        shim.state("app", "cat").await.unwrap().status,
        TaskStatus::Running,
        "the writer's going is no end"
    );
    shim.close_io("app", "cat").await.unwrap();
    assert_eq!(shim.wait("app", "cat").await.unwrap().code, 0);
    shim.delete("app", "cat").await.unwrap();
    assert_eq!(reading.join().unwrap(), "through a fifo\n");

    let (input, output) = (fifo(&scene.dir.join("tin")), fifo(&scene.dir.join("tout")));
    let reading = reader(&output);
    let stdio = Stdio {
        stdin: input.clone(),
        stdout: output,
        terminal: true,
        ..Stdio::default()
    };
    let mut sh = process(&["sh"]);
    sh["terminal"] = json!(true);
    shim.exec(ExecRequest {
        id: "app".into(),
        exec_id: "tty".into(),
        process: sh,
        stdio,
    })
    .await
    .unwrap();
    shim.start_task("app", "tty").await.unwrap();
    shim.resize_pty("app", "tty", 91, 37).await.unwrap();
    let mut writer = std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(0)
        .open(&input)
        .unwrap();
    writer.write_all(b"tty; stty size; exit 4\n").unwrap();
    assert_eq!(shim.wait("app", "tty").await.unwrap().code, 4);
    shim.delete("app", "tty").await.unwrap();
    let text = reading.join().unwrap();
    assert!(
        text.contains("/dev/pts/0") && text.contains("37 91"),
        "{text:?}"
    );

    let request = ExecRequest {
        id: "app".into(),
        exec_id: "no".into(),
        process: process(&["no-such-thing"]),
        stdio: Stdio::default(),
    };
    shim.exec(request).await.unwrap();
    let error = shim.start_task("app", "no").await.unwrap_err();
    assert!(
        error.shim_message().unwrap().contains("no-such-thing"),
        "{error:?}"
    );
    shim.delete("app", "no").await.unwrap();

    remove(&shim, "app").await;
    remove(&shim, "sb").await;
    shim.shutdown("sb").await.unwrap();
    std::fs::remove_dir_all(&scene.dir).unwrap();
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the file's head"]
async fn a_logger_gets_every_line() {
    let scene = scene("log");
    let _events = serve_events(&scene.bootstrap.ttrpc_address).unwrap();
    let shim = scene.sandbox("sb").await;
    let sandbox_pid = shim.state("sb", "").await.unwrap().pid;
    let script = scene.dir.join("logger.sh");
    // Reads one line, dies; the next one goes on where it stopped. `read` of a shell takes byte by byte.
    std::fs::write(
        &script,
        "#!/bin/sh\nexec 5>&-\nfile=$2\nn=0\nwhile IFS= read -r line <&3; do echo \"$CONTAINER_ID $line\" >>\"$file\"; n=$((n+1)); [ $n = 3 ] && [ ! -e \"$file.died\" ] && { : >\"$file.died\"; kill -9 $$; }; done\nexit 0\n",
    )
    .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let log = scene.dir.join("app.log");
    if !scene.is_ours() {
        std::fs::write(scene.dir.join("app.log.died"), "").unwrap();
    }
    let uri = format!("binary://{}?path={}", script.display(), log.display());
    let bundle = scene.bundle(
        "app",
        &scene.app_spec(
            &[
                "sh",
                "-c",
                "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.1; done",
            ],
            "sb",
            sandbox_pid,
        ),
    );
    let stdio = Stdio {
        stdout: uri.clone(),
        stderr: uri,
        ..Stdio::default()
    };
    let rootfs = scene.overlay("app");
    shim.create(CreateRequest {
        id: "app".into(),
        bundle,
        rootfs,
        stdio,
    })
    .await
    .unwrap();
    shim.start_task("app", "").await.unwrap();
    assert_eq!(shim.wait("app", "").await.unwrap().code, 0);
    shim.delete("app", "").await.unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    let want: String = (1..=6).map(|n| format!("app line {n}\n")).collect();
    assert_eq!(text, want);
    remove(&shim, "sb").await;
    shim.shutdown("sb").await.unwrap();
    std::fs::remove_dir_all(&scene.dir).unwrap();
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the file's head"]
async fn delete_cleans_up_after_a_killed_shim() {
    let scene = scene("kill");
    let _events = serve_events(&scene.bootstrap.ttrpc_address).unwrap();
    let shim = scene.sandbox("sb").await;
    let sandbox_pid = shim.state("sb", "").await.unwrap().pid;
    let bundle = scene.bundle(
        "app",
        &scene.app_spec(&["sh", "-c", "sleep 1000 & wait"], "sb", sandbox_pid),
    );
    let rootfs = scene.overlay("app");
    let pid = shim
        .create(CreateRequest {
            id: "app".into(),
            bundle: bundle.clone(),
            rootfs,
            stdio: Stdio::default(),
        })
        .await
        .unwrap();
    shim.start_task("app", "").await.unwrap();
    let shim_pid = shim.connection("app").await.unwrap().shim_pid;
    let killed = std::process::Command::new("kill")
        .args(["-9", &shim_pid.to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let error = shim.wait("app", "").await.unwrap_err();
    assert!(error.is_gone(), "{error:?}");
    for (id, bundle) in [("app", bundle), ("sb", scene.dir.join("sb"))] {
        let exit = delete_binary(&scene.bootstrap, id, &bundle).await.unwrap();
        assert_eq!(exit.code, 137);
        delete_binary(&scene.bootstrap, id, &bundle).await.unwrap();
        assert!(!bundle.join("hpk.json").exists());
    }
    for pid in [pid, sandbox_pid] {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }
    std::fs::remove_dir_all(&scene.dir).unwrap();
}

/// Creates and starts a container of the sandbox from `spec`.
async fn run_app(
    shim: &Shim,
    scene: &Scene,
    id: &str,
    spec: &Value,
) -> Result<u32, hpk_shim_client::Error> {
    let bundle = scene.bundle(id, spec);
    Shim::start(&scene.bootstrap, id, &bundle).await.unwrap();
    let rootfs = scene.overlay(id);
    shim.create(CreateRequest {
        id: id.into(),
        bundle,
        rootfs,
        stdio: Stdio::default(),
    })
    .await?;
    shim.start_task(id, "").await
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the file's head"]
async fn a_container_is_what_its_spec_says() {
    let scene = scene("spec");
    let _events = serve_events(&scene.bootstrap.ttrpc_address).unwrap();
    let shim = scene.sandbox("sb").await;
    let sandbox_pid = shim.state("sb", "").await.unwrap().pid;
    let volume = scene.dir.join("volume");
    std::fs::create_dir_all(volume.join("deep")).unwrap();
    std::fs::write(volume.join("file"), "data").unwrap();
    let mut spec = scene.app_spec(&["sleep", "1000"], "sb", sandbox_pid);
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
    run_app(&shim, &scene, "app", &spec).await.unwrap();

    let script = "
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
    let (code, text) = exec(&shim, &scene, "app", "look", &["sh", "-c", script]).await;
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
    let (mut own, out) = (
        process(&["sh", "-c", "readlink /proc/1/cwd; ls /proc/1/fd | wc -w"]),
        fifo(&scene.dir.join("own.out")),
    );
    own["user"] = json!({"uid": 1234, "gid": 2345});
    let reading = reader(&out);
    let stdio = Stdio {
        stdout: out.clone(),
        stderr: out,
        ..Stdio::default()
    };
    shim.exec(ExecRequest {
        id: "app".into(),
        exec_id: "own".into(),
        process: own,
        stdio,
    })
    .await
    .unwrap();
    shim.start_task("app", "own").await.unwrap();
    assert_eq!(shim.wait("app", "own").await.unwrap().code, 0);
    shim.delete("app", "own").await.unwrap();
    assert_eq!(reading.join().unwrap(), "/made/by/runtime\n3\n");

    // An exec is as its own process says.
    let mut process = process(&["sh", "-c", "id -u; pwd; ulimit -n; exit 3"]);
    process["user"] = json!({"uid": 77, "gid": 78});
    process["cwd"] = json!("/vol");
    let out = fifo(&scene.dir.join("as77.out"));
    let reading = reader(&out);
    let stdio = Stdio {
        stdout: out.clone(),
        stderr: out,
        ..Stdio::default()
    };
    shim.exec(ExecRequest {
        id: "app".into(),
        exec_id: "as77".into(),
        process,
        stdio,
    })
    .await
    .unwrap();
    shim.start_task("app", "as77").await.unwrap();
    assert_eq!(shim.wait("app", "as77").await.unwrap().code, 3);
    shim.delete("app", "as77").await.unwrap();
    assert!(reading.join().unwrap().starts_with("77\n/vol\n"));

    remove(&shim, "app").await;
    remove(&shim, "sb").await;
    shim.shutdown("sb").await.unwrap();
    std::fs::remove_dir_all(&scene.dir).unwrap();
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the file's head"]
async fn a_shared_pid_namespace_is_joined() {
    let scene = scene("pid");
    let _events = serve_events(&scene.bootstrap.ttrpc_address).unwrap();
    let shim = scene.sandbox("sb").await;
    let sandbox_pid = shim.state("sb", "").await.unwrap().pid;
    let mut spec = scene.app_spec(&["sh", "-c", "sleep 1000 & wait"], "sb", sandbox_pid);
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces[0]["path"] = json!(format!("/proc/{sandbox_pid}/ns/pid"));
    let pid = run_app(&shim, &scene, "app", &spec).await.unwrap();
    let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_eq!(of(pid), of(sandbox_pid));
    let (code, text) = exec(
        &shim,
        &scene,
        "app",
        "ps",
        &["sh", "-c", "cat /proc/1/comm; ps | grep -c '[s]leep 1000'"],
    )
    .await;
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
    remove(&shim, "sb").await;
    shim.shutdown("sb").await.unwrap();
    std::fs::remove_dir_all(&scene.dir).unwrap();
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the file's head"]
async fn what_fails_is_named_and_leaves_nothing() {
    let scene = scene("fail");
    let _events = serve_events(&scene.bootstrap.ttrpc_address).unwrap();
    let shim = scene.sandbox("sb").await;
    let sandbox_pid = shim.state("sb", "").await.unwrap().pid;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut spec = scene.app_spec(&["sleep", "1000"], "sb", sandbox_pid);
        change(&mut spec);
        spec
    };
    let cases: [(&str, Value, &str); 5] = [
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
            "bad-user",
            with(&|s| s["process"]["user"]["uid"] = json!(4_000_000_000u32)),
            "4000000000",
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
    for (id, spec, word) in cases {
        if id == "bad-user"
            && (!scene.is_ours()
                || std::fs::read_to_string("/proc/self/uid_map")
                    .unwrap()
                    .contains("4294967295"))
        {
            continue; // Every user is there.
        }
        let bundle = scene.bundle(id, &spec);
        Shim::start(&scene.bootstrap, id, &bundle).await.unwrap();
        let rootfs = scene.overlay(id);
        let create = shim
            .create(CreateRequest {
                id: id.into(),
                bundle: bundle.clone(),
                rootfs,
                stdio: Stdio::default(),
            })
            .await;
        let error = create.unwrap_err();
        let text = error.shim_message().unwrap_or_default();
        println!("{id}: {text}");
        assert!(text.contains(word), "{id}: {error:?}");
        assert!(shim.state(id, "").await.unwrap_err().is_not_found(), "{id}");
        if scene.is_ours() {
            assert!(!bundle.join("hpk.json").exists(), "{id}");
        }
    }
    // Twenty at once neither mix up nor hold each other up.
    let from = Instant::now();
    let ids: Vec<String> = (0..10).map(|n| format!("many{n}")).collect();
    let all = ids.iter().enumerate().map(|(n, id)| {
        let (shim, scene, spec) = (
            shim.clone(),
            &scene,
            scene.app_spec(&["sh", "-c", &format!("exit {n}")], "sb", sandbox_pid),
        );
        async move {
            run_app(&shim, scene, id, &spec).await.unwrap();
            let code = shim.wait(id, "").await.unwrap().code;
            shim.delete(id, "").await.unwrap();
            code
        }
    });
    let codes = join_all(all).await;
    assert_eq!(codes, (0..10).collect::<Vec<u32>>());
    println!("ten containers at once {:?}", from.elapsed());
    remove(&shim, "sb").await;
    shim.shutdown("sb").await.unwrap();
    std::fs::remove_dir_all(&scene.dir).unwrap();
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
#[ignore = "needs a shim, root and a rootfs: see the file's head"]
async fn twenty_pods_fit_and_go() {
    let scene = scene("many");
    let _events = serve_events(&scene.bootstrap.ttrpc_address).unwrap();
    let warm = scene.sandbox("warm").await;
    let before = available_kb();
    let from = Instant::now();
    let mut shims = Vec::new();
    for n in 0..20 {
        let (sandbox, app) = (format!("sb{n}"), format!("app{n}"));
        let shim = scene.sandbox(&sandbox).await;
        let sandbox_pid = shim.state(&sandbox, "").await.unwrap().pid;
        let spec = scene.app_spec(&["sleep", "1000"], &sandbox, sandbox_pid);
        run_app(&shim, &scene, &app, &spec).await.unwrap();
        shims.push((shim, sandbox, app));
    }
    println!("20 pods after {:?}", from.elapsed());
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!(
        "{} kB of the machine's memory a pod",
        (before - available_kb()) / 20
    );
    for (shim, sandbox, app) in &shims {
        remove(shim, app).await;
        remove(shim, sandbox).await;
        shim.shutdown(sandbox).await.unwrap();
    }
    remove(&warm, "warm").await;
    warm.shutdown("warm").await.unwrap();
    std::fs::remove_dir_all(&scene.dir).unwrap();
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
#[ignore = "needs a shim, root and a rootfs: see the file's head"]
async fn a_shim_killed_in_the_middle_of_a_create_leaves_nothing() {
    let scene = scene("mid");
    let _events = serve_events(&scene.bootstrap.ttrpc_address).unwrap();
    for n in 0..24u64 {
        let id = format!("mid{n}");
        let own = json!([{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}]);
        let bundle = scene.bundle(&id, &spec(&["sleep", "7654321"], own, json!({})));
        let rootfs = scene.overlay(&id);
        let shim = Shim::start(&scene.bootstrap, &id, &bundle).await.unwrap();
        let shim_pid = shim.connection(&id).await.unwrap().shim_pid;
        let request = CreateRequest {
            id: id.clone(),
            bundle: bundle.clone(),
            rootfs,
            stdio: Stdio::default(),
        };
        let creating = tokio::spawn(async move {
            if shim.create(request).await.is_ok() {
                let _ = shim.start_task(&id, "").await;
            }
        });
        tokio::time::sleep(Duration::from_millis(n * 5)).await;
        assert!(
            std::process::Command::new("kill")
                .args(["-9", &shim_pid.to_string()])
                .status()
                .unwrap()
                .success()
        );
        creating.await.unwrap();
        delete_binary(&scene.bootstrap, &format!("mid{n}"), &bundle)
            .await
            .unwrap();
    }
    // Apptainer's last one may still be on its way to find out.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let left = processes_with(&["7654321", "hpk-init", &scene.dir.to_string_lossy()]);
    assert!(left.is_empty(), "{left:#?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*scene.dir.to_string_lossy()), "{mounts}");
    std::fs::remove_dir_all(&scene.dir).unwrap();
}
