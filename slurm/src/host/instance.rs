//! The bubble's Apptainer instance: its command line, its start, its end.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::settings::BUBBLE_ROOT;

/// A folder or file of the host, and where the bubble sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

impl Bind {
    pub fn new(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            target: target.into(),
            read_only: false,
        }
    }

    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// As Apptainer's `--bind` wants it, which knows no quoting.
    fn argument(&self) -> Result<String> {
        let text = format!("{}:{}", self.source.display(), self.target.display());
        if text.matches(':').count() > 1 || text.contains(',') {
            bail!("{text}: Apptainer can't bind a path with a colon or comma");
        }
        Ok(if self.read_only {
            format!("{text}:ro")
        } else {
            text
        })
    }
}

/// Folders in the node-local one that are bound to other places of the bubble too: its root is
/// read-only.
pub const OWN_FOLDERS: [(&str, &str); 10] = [
    ("run", "/run"),
    ("tmp", "/tmp"),
    ("var-tmp", "/var/tmp"),
    ("log", "/var/log"),
    ("cache", "/var/cache"),
    ("cni.d", "/etc/cni/net.d"),
    ("cni-lib", "/var/lib/cni"),
    ("kubelet-lib", "/var/lib/kubelet"),
    ("root", "/root"),
    ("etc-hpk", "/etc/hpk"),
];

/// What a bubble sees of the host.
#[derive(Debug, Clone)]
pub struct Sources<'a> {
    pub local: &'a Path,
    pub home: &'a Path,
    /// The folder of ours on the shared file system, where HPK_HOME puts it outside the home.
    pub hpk_home: &'a Path,
    pub own_program: &'a Path,
    /// The site's certificate authorities.
    pub trust_store: Option<&'a Path>,
    /// Programs that go over the image's (HPK_DEV=1): path on the host, path in the bubble.
    pub programs: Vec<(PathBuf, PathBuf)>,
}

pub fn plan_binds(sources: &Sources<'_>) -> Vec<Bind> {
    let local = sources.local;
    let mut binds = vec![Bind::new(local, BUBBLE_ROOT)];
    for (folder, target) in OWN_FOLDERS {
        binds.push(Bind::new(local.join(folder), target));
    }
    for file in ["resolv.conf", "hosts"] {
        binds.push(Bind::new(local.join(file), Path::new("/etc").join(file)));
    }
    binds.push(Bind::new(sources.home, sources.home));
    if !sources.hpk_home.starts_with(sources.home) {
        binds.push(Bind::new(sources.hpk_home, sources.hpk_home));
    }
    // Both ends of the link are the same program, whatever the image has.
    binds.push(Bind::new(sources.own_program, "/usr/local/bin/hpk-bubble").read_only());
    if let Some(file) = sources.trust_store {
        binds.push(Bind::new(file, "/etc/ssl/certs/ca-certificates.crt").read_only());
    }
    for (program, target) in &sources.programs {
        binds.push(Bind::new(program, target).read_only());
    }
    binds
}

/// The arguments of `apptainer` that start an instance.
pub fn start_arguments(
    binds: &[Bind],
    host_name: &str,
    pid_file: &Path,
    image: &Path,
    name: &str,
) -> Result<Vec<String>> {
    let mut arguments: Vec<String> = [
        "--quiet",
        "instance",
        "start",
        "--fakeroot",
        "--net",
        "--network",
        "none",
        // Not --contain, whose /dev lacks the GPUs; what it leaves out is left out here.
        "--no-mount",
        "home,tmp,cwd,bind-paths",
        "--hostname",
        host_name,
        "--pid-file",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(pid_file.display().to_string());
    for bind in binds {
        arguments.push("--bind".into());
        arguments.push(bind.argument()?);
    }
    arguments.push(image.display().to_string());
    arguments.push(name.into());
    Ok(arguments)
}

/// A running instance.
#[derive(Debug)]
pub struct Instance {
    apptainer: PathBuf,
    pub name: String,
    /// Its init, in the host's PID namespace.
    pub init: Process,
    /// Apptainer's own process around it, which leads the session of its FUSE helpers.
    starter: Option<Process>,
}

/// A process that can't be mistaken for a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    started: u64,
}

impl Process {
    pub fn of(pid: i32) -> Option<Self> {
        let started = stat_field(pid, 22)?;
        Some(Self { pid, started })
    }

    pub fn lives(&self) -> bool {
        Self::of(self.pid) == Some(*self) && stat_text(self.pid, 3).is_some_and(|s| s != "Z")
    }

    fn signal(&self, signal: Signal) {
        if self.lives() {
            // It may end in between, which is what is wanted.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// A field of /proc/PID/stat, counted from 1 as proc(5) does, from the third on.
fn stat_text(pid: i32, field: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(field - 3).map(str::to_owned)
}

fn stat_field(pid: i32, field: usize) -> Option<u64> {
    stat_text(pid, field)?.trim().parse().ok()
}

impl Instance {
    /// Starts it under the first name that the user has free on this host.
    pub fn start(
        apptainer: &Path,
        names: &[String],
        start: impl Fn(&str) -> Result<Vec<String>>,
        pid_file: &Path,
    ) -> Result<Self> {
        let _turn = Turn::take()?;
        let mut refused = String::new();
        for name in names {
            if is_taken(apptainer, name)? {
                refused = format!("the instance {name} runs already");
                continue;
            }
            let output = Command::new(apptainer)
                .args(start(name)?)
                .output()
                .with_context(|| format!("running {}", apptainer.display()))?;
            if output.status.success() {
                return Self::adopt(apptainer, name, pid_file);
            }
            refused = last_lines(&String::from_utf8_lossy(&output.stderr), 3);
            break;
        }
        bail!("apptainer instance start: {refused}")
    }

    fn adopt(apptainer: &Path, name: &str, pid_file: &Path) -> Result<Self> {
        let text = crate::files::read(pid_file)?;
        let init = text
            .trim()
            .parse()
            .ok()
            .and_then(Process::of)
            .with_context(|| format!("instance {name} ended as soon as it began"))?;
        let starter = stat_field(init.pid, 4)
            .and_then(|parent| i32::try_from(parent).ok())
            .filter(|parent| *parent > 1)
            .and_then(Process::of);
        Ok(Self {
            apptainer: apptainer.to_owned(),
            name: name.to_owned(),
            init,
            starter,
        })
    }

    /// Kills what is left of it, its FUSE helpers included, and removes Apptainer's record of it.
    pub async fn end(&self) {
        self.init.signal(Signal::SIGKILL);
        let limit = Instant::now() + Duration::from_secs(3);
        while Instant::now() < limit && self.starter.is_some_and(|starter| starter.lives()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if let Some(starter) = self.starter {
            starter.signal(Signal::SIGKILL);
            for pid in session_members(starter.pid) {
                // Gone already is as good.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        // Listing removes the records of instances that have gone.
        let _ = is_taken(&self.apptainer, &self.name);
    }
}

/// One start at a time for a user on a host: Apptainer's failed start of a name that another start
/// takes at that moment removes the other's record. Held by an abstract socket, which goes with
/// its holder.
#[derive(Debug)]
struct Turn(#[allow(dead_code)] UnixListener);

impl Turn {
    fn take() -> Result<Self> {
        let name = format!("hpk-instance-{}", nix::unistd::getuid());
        let address = SocketAddr::from_abstract_name(name).context("naming the lock")?;
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => return Ok(Self(listener)),
                Err(error) if Instant::now() > limit => {
                    return Err(error).context("waiting for another cluster's start on this host");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

fn is_taken(apptainer: &Path, name: &str) -> Result<bool> {
    let output = Command::new(apptainer)
        .args(["--quiet", "instance", "list", "--json"])
        .output()
        .with_context(|| format!("running {}", apptainer.display()))?;
    if !output.status.success() {
        bail!(
            "apptainer instance list: {}",
            last_lines(&String::from_utf8_lossy(&output.stderr), 3)
        );
    }
    let list: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("reading apptainer's list of instances")?;
    let instances = list["instances"].as_array().cloned().unwrap_or_default();
    Ok(instances
        .iter()
        .any(|instance| instance["instance"] == name))
}

/// Processes of this user in a session whose leader has gone.
fn session_members(session: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| stat_field(*pid, 6) == u64::try_from(session).ok())
        .collect()
}

/// The last lines of a program's complaints, as one line.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(count)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources<'a>() -> Sources<'a> {
        Sources {
            local: Path::new("/tmp/hpk-1000-7"),
            home: Path::new("/home/hpc"),
            hpk_home: Path::new("/home/hpc/.hpk"),
            own_program: Path::new("/hpk/bin/hpk-bubble"),
            trust_store: None,
            programs: Vec::new(),
        }
    }

    #[test]
    fn the_node_local_folder_is_bound_before_what_is_in_it() {
        let binds = plan_binds(&sources());
        assert_eq!(binds[0], Bind::new("/tmp/hpk-1000-7", "/var/lib/hpk"));
        assert!(binds.contains(&Bind::new("/tmp/hpk-1000-7/run", "/run")));
        assert!(binds.contains(&Bind::new("/home/hpc", "/home/hpc")));
        assert!(
            binds
                .iter()
                .all(|bind| bind.source != Path::new("/home/hpc/.hpk"))
        );
    }

    #[test]
    fn a_path_that_apptainer_would_misread_is_refused() {
        let error = Bind::new("/tmp/a,b", "/x").argument().unwrap_err();
        assert!(error.to_string().contains("/tmp/a,b"));
    }

    #[test]
    fn the_instance_gets_no_network_of_the_hosts() {
        let arguments = start_arguments(
            &plan_binds(&sources()),
            "node1",
            Path::new("/p"),
            Path::new("/i.sif"),
            "bubble1",
        )
        .unwrap();
        let line = arguments.join(" ");
        assert!(line.contains("--fakeroot --net --network none"), "{line}");
        assert!(line.ends_with("/i.sif bubble1"), "{line}");
    }

    #[test]
    fn this_process_lives_and_a_reused_number_is_another_process() {
        let own = Process::of(std::process::id() as i32).unwrap();
        assert!(own.lives());
        let other = Process {
            started: own.started + 1,
            ..own
        };
        assert!(!other.lives());
    }
}
