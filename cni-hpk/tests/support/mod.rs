//! A throwaway user, mount, network and PID namespace for each kernel test,
//! looked at with iproute2 and nft, not with our own code.

#![allow(dead_code)] // each test binary uses another part

pub mod site;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const INSIDE: &str = "HPK_KERNEL_TEST";

/// Runs `body` inside the namespaces: runs this test again there, alone.
pub fn inside(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        prepare();
        return body();
    }
    let output = Command::new("timeout")
        .args([
            "--kill-after=2",
            "400",
            "unshare",
            "--user",
            "--map-root-user",
        ])
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "inside the namespaces:\n{text}");
    assert!(text.contains("1 passed"), "{test} did not run:\n{text}");
}

fn prepare() {
    sh("mount -t tmpfs tmpfs /run && mkdir /run/netns && mount -t tmpfs tmpfs /run/netns");
    sh("ip link set lo up");
    // br_netfilter hides faults of a bridge that doesn't route.
    sh("echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null || true");
}

/// Runs a shell command and returns what it printed; it must succeed.
pub fn sh(command: &str) -> String {
    let output = try_sh(&format!("set -e\n{command}"));
    assert!(
        output.status.success(),
        "{command}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn try_sh(command: &str) -> Output {
    Command::new("sh").args(["-c", command]).output().unwrap()
}

pub fn succeeds(command: &str) -> bool {
    try_sh(command).status.success()
}

/// What `ip -j` and the like print.
pub fn json_of(command: &str) -> Value {
    let text = sh(command);
    match text.trim().is_empty() {
        true => json!([]),
        false => serde_json::from_str(&text).unwrap(),
    }
}

/// Waits until `condition` holds.
pub fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        if Instant::now() > end {
            let logs = try_sh("tail -n 20 /run/*.log").stdout;
            panic!(
                "{what}: not within 20 s\n{}",
                String::from_utf8_lossy(&logs)
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process that ends with the test.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &str) -> Self {
        let child = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .stdin(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The folders with our plugin and the stock ones.
pub fn plugin_path() -> String {
    let own = Path::new(env!("CARGO_BIN_EXE_cni-hpk")).parent().unwrap();
    let stock = ["/usr/lib/cni", "/opt/cni/bin"];
    let stock = stock
        .iter()
        .find(|path| Path::new(path).join("host-local").exists());
    format!(
        "{}:{}",
        own.display(),
        stock.expect("host-local is not installed")
    )
}

/// The plugin's conf on the pod network of a bubble.
pub fn conf() -> Value {
    // By rename: calls made on other threads may be reading it.
    let part = format!("/run/subnet.env.{:?}", std::thread::current().id());
    std::fs::write(
        &part,
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
    )
    .unwrap();
    std::fs::rename(part, "/run/subnet.env").unwrap();
    json!({
        "cniVersion": "1.1.0",
        "name": "hpk",
        "type": "cni-hpk",
        "subnetFile": "/run/subnet.env",
        "overlayFile": "/run/overlay.json",
        "dataDir": "/run/cni",
        "ipMasq": true
    })
}

/// One run of the plugin.
#[derive(Clone)]
pub struct Call {
    pub command: &'static str,
    pub id: String,
    pub netns: Option<PathBuf>,
    pub conf: Value,
}

impl Call {
    pub fn new(command: &'static str, id: &str) -> Self {
        Self {
            command,
            id: id.to_owned(),
            netns: Some(format!("/run/netns/{id}").into()),
            conf: conf_for(command),
        }
    }

    pub fn run(&self) -> Result<Value, Value> {
        let output = self.start(Command::new(PLUGIN));
        let value = match output.stdout.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&output.stdout).unwrap(),
        };
        match output.status.success() {
            true => Ok(value),
            false => Err(value),
        }
    }

    /// Runs the plugin, killed as it is about to make its `count`th system
    /// call of that name. Whether it came so far.
    pub fn run_until(&self, syscall: &str, count: usize) -> bool {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e"]);
        strace.arg(format!("inject={syscall}:signal=SIGKILL:when={count}"));
        strace.arg(PLUGIN);
        let output = self.start(strace);
        let whole = output.status.success();
        assert!(
            whole || output.stdout.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        !whole
    }

    fn start(&self, mut program: Command) -> Output {
        use std::io::Write as _;
        let mut child = program
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", self.netns.as_deref().unwrap_or(Path::new("")))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", plugin_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let text = self.conf.to_string();
        let mut stdin = child.stdin.take().unwrap();
        // One that is killed early reads nothing.
        let _ = stdin.write_all(text.as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap()
    }
}

const PLUGIN: &str = env!("CARGO_BIN_EXE_cni-hpk");

/// What an attachment leaves if it isn't removed whole: interfaces, leases,
/// records.
pub fn leftovers() -> String {
    sh(
        "ip -br link | grep -E '^(hpk[0-9a-f]{12}|veth|tap|ifb)' || true
        find /run/cni/networks -type f -name '[0-9a-f]*[.:]*' 2>/dev/null || true
        ls /run/cni/attachments 2>/dev/null || true",
    )
}

fn conf_for(command: &str) -> Value {
    let mut conf = conf();
    // Where the stock host-local is older than 1.1.0 (Debian 12's).
    if command != "GC" && command != "STATUS" {
        conf["cniVersion"] = "1.0.0".into();
    }
    conf
}

/// A pod's namespace, made as the kubelet makes it.
pub fn netns(name: &str) {
    sh(&format!(
        "unshare --net sh -c 'ip link set lo up; touch /run/netns/{name}; mount --bind /proc/self/ns/net /run/netns/{name}'"
    ));
}

/// The pod's address, as `ip` sees it.
pub fn address(name: &str) -> String {
    let links = json_of(&format!("ip -n {name} -j -4 address show dev eth0"));
    links[0]["addr_info"][0]["local"]
        .as_str()
        .unwrap()
        .to_owned()
}
