//! A shim's bundles in a folder of the test's own, and a pod's sandbox run from them.

use std::{
    io::Read,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use hpk_shim_client::{
    Bootstrap, CreateRequest, Error, Events, ExecRequest, Mount, Shim, Stdio, serve_events,
};
use serde_json::{Value, json};

pub struct Scene {
    pub bootstrap: Bootstrap,
    pub dir: PathBuf,
    rootfs: PathBuf,
    pause: PathBuf,
}

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set"))
        .into()
}

/// Whether this is the initial user namespace, which has every user.
pub fn has_all_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    map.contains("4294967295")
}

/// The namespaces of a container that joins none.
pub fn own_namespaces() -> Value {
    json!([{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}])
}

/// A container's config.json.
pub fn spec(args: &[&str], namespaces: Value, annotations: Value) -> Value {
    static COUNT: AtomicU32 = AtomicU32::new(0);
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

/// The `process` of an exec as root.
pub fn process(args: &[&str]) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin"]})
}

impl Scene {
    /// Serves the shims' events, too.
    pub fn new(test: &str) -> (Self, Events) {
        let dir = variable("HPK_TEST_DIR").join(format!("{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let scene = Self {
            bootstrap: Bootstrap::new(
                variable("HPK_TEST_SHIM"),
                format!("hpk-test-{test}-{}", std::process::id()),
                dir.join("events.sock"),
            ),
            rootfs: variable("HPK_TEST_ROOTFS"),
            pause: variable("HPK_TEST_PAUSE"),
            dir,
        };
        let events = serve_events(&scene.bootstrap.ttrpc_address).unwrap();
        (scene, events)
    }

    /// Not the reference.
    pub fn is_ours(&self) -> bool {
        !self.bootstrap.binary.to_string_lossy().contains("runc")
    }

    pub fn bundle(&self, id: &str, spec: &Value) -> PathBuf {
        let bundle = self.dir.join(id);
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    /// To create `id` over the test's root directory, as the kubelet does over an image.
    pub fn request(&self, id: &str, stdio: Stdio) -> CreateRequest {
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
        if !has_all_users() {
            options.push("userxattr".into());
        }
        CreateRequest {
            id: id.into(),
            bundle: self.dir.join(id),
            rootfs: vec![Mount {
                kind: "overlay".into(),
                source: "overlay".into(),
                options,
            }],
            stdio,
        }
    }

    /// A FIFO in the folder of the test, read to its end on a thread that has it open (or waits in the open) before
    /// any writer comes.
    pub fn output(&self, name: &str) -> (String, std::thread::JoinHandle<String>) {
        let path = self.fifo(name);
        let (sender, receiver) = std::sync::mpsc::channel();
        let from = path.clone();
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            sender.send(()).unwrap();
            std::fs::File::open(from)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            text
        });
        receiver.recv().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        (path, reading)
    }

    pub fn fifo(&self, name: &str) -> String {
        let path = self.dir.join(name);
        let status = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(status.unwrap().success());
        path.to_str().unwrap().to_owned()
    }

    pub fn remove(self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// A sandbox that runs, with a shim of its own.
pub struct Pod<'a> {
    pub scene: &'a Scene,
    pub shim: Shim,
    pub id: String,
    /// The sandbox's.
    pub pid: u32,
}

impl<'a> Pod<'a> {
    pub async fn start(scene: &'a Scene, id: &str) -> Self {
        let annotations = json!({"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": id});
        let bundle = scene.bundle(id, &spec(&["/hpk-pause"], own_namespaces(), annotations));
        std::fs::copy(&scene.pause, bundle.join("rootfs/hpk-pause")).unwrap();
        let shim = Shim::start(&scene.bootstrap, id, &bundle).await.unwrap();
        shim.create(CreateRequest::new(id, &bundle)).await.unwrap();
        shim.start_task(id, "").await.unwrap();
        let pid = shim.state(id, "").await.unwrap().pid;
        let id = id.to_owned();
        Self {
            scene,
            shim,
            id,
            pid,
        }
    }

    /// The spec of a container in the sandbox's namespaces, but for PID and mounts.
    pub fn app(&self, args: &[&str]) -> Value {
        let ns = |kind: &str| format!("/proc/{}/ns/{kind}", self.pid);
        let namespaces = json!([
            {"type": "pid"}, {"type": "mount"}, {"type": "network", "path": ns("net")},
            {"type": "ipc", "path": ns("ipc")}, {"type": "uts", "path": ns("uts")},
        ]);
        let annotations = json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": self.id});
        spec(args, namespaces, annotations)
    }

    /// Writes the bundle and has the pod's shim create the container; its pid.
    pub async fn create(&self, id: &str, spec: &Value, stdio: Stdio) -> Result<u32, Error> {
        let bundle = self.scene.bundle(id, spec);
        let again = Shim::start(&self.scene.bootstrap, id, &bundle)
            .await
            .unwrap();
        assert_eq!(again.address(), self.shim.address(), "one shim a pod");
        self.shim.create(self.scene.request(id, stdio)).await
    }

    /// Creates and starts a container without streams; its pid.
    pub async fn run(&self, id: &str, spec: &Value) -> u32 {
        self.create(id, spec, Stdio::default()).await.unwrap();
        self.shim.start_task(id, "").await.unwrap()
    }

    /// Adds a process to container `app` and starts it.
    pub async fn start_exec(&self, exec_id: &str, process: Value, stdio: Stdio) {
        let request = ExecRequest {
            id: "app".into(),
            exec_id: exec_id.into(),
            process,
            stdio,
        };
        self.shim.exec(request).await.unwrap();
        self.shim.start_task("app", exec_id).await.unwrap();
    }

    /// Waits for the end of a process of container `app` and lets it go; its exit code.
    pub async fn end_exec(&self, exec_id: &str) -> u32 {
        let exit = self.shim.wait("app", exec_id).await.unwrap();
        self.shim.delete("app", exec_id).await.unwrap();
        exit.code
    }

    /// Runs a process in container `app` to its end: exit code, and all it put out.
    pub async fn exec(&self, exec_id: &str, process: Value) -> (u32, String) {
        let (out, reading) = self.scene.output(&format!("{exec_id}.out"));
        let stdio = Stdio {
            stdout: out.clone(),
            stderr: out,
            ..Stdio::default()
        };
        self.start_exec(exec_id, process, stdio).await;
        let code = self.end_exec(exec_id).await;
        (code, reading.join().unwrap())
    }

    /// Kills and deletes a container.
    pub async fn remove(&self, id: &str) {
        let _ = self.shim.kill(id, "", 9, false).await;
        self.shim.wait(id, "").await.unwrap();
        self.shim.delete(id, "").await.unwrap();
    }

    /// Removes the sandbox and ends its shim.
    pub async fn end(self) {
        self.remove(&self.id).await;
        self.shim.shutdown(&self.id).await.unwrap();
    }
}
