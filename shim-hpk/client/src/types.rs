//! Requests and answers of the Task API in plain types.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use containerd_shim_protos::{api, protobuf::well_known_types::timestamp::Timestamp};

/// A mount of a container's root file system, as in fstab: the shim mounts it at `BUNDLE/rootfs`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// File system type (`overlay`, `bind`, `tmpfs` …).
    pub kind: String,
    /// Device, directory, or the type's name where it has no source.
    pub source: String,
    /// Options, one an element: `ro`, `rbind`, `lowerdir=…`.
    pub options: Vec<String>,
}

/// Where a process's standard streams go. Empty means /dev/null; but give stderr along with stdout
/// where there is no terminal (the same path will do), or the stock runc shim fails.
///
/// A plain path is a FIFO; the shim holds both its ends until the process is deleted. Open the
/// reading end of an output before the process starts (in the background: it waits for the shim),
/// or a process that ends at once and is deleted leaves nobody to open it;
/// `file:///path` is appended to; `binary:///path?key=value` starts a logger once for stdout and
/// stderr together (containerd's logger protocol).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    /// Allocate a terminal; then only stdin and stdout are used.
    pub terminal: bool,
}

/// What [`crate::Shim::create`] needs.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    pub id: String,
    /// Holds `config.json` (OCI runtime spec) and `rootfs/`.
    pub bundle: PathBuf,
    /// Mounted in order at `BUNDLE/rootfs`; empty: the directory is used as it is.
    pub rootfs: Vec<Mount>,
    pub stdio: Stdio,
}

impl CreateRequest {
    /// A container with no rootfs mounts and no IO.
    pub fn new(id: impl Into<String>, bundle: impl AsRef<Path>) -> Self {
        Self {
            id: id.into(),
            bundle: bundle.as_ref().to_owned(),
            ..Self::default()
        }
    }
}

/// What [`crate::Shim::exec`] needs. The process only starts with `start_task(id, exec_id)`.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    pub id: String,
    /// Unique in the container.
    pub exec_id: String,
    /// The `process` object of an OCI runtime spec, as JSON.
    pub process: serde_json::Value,
    pub stdio: Stdio,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Exit code, 128 + n for a process ended by signal n.
    pub code: u32,
    pub at: SystemTime,
    /// Its former process id in the caller's PID namespace; 0 where the call does not tell.
    pub pid: u32,
}

/// Status of a task or exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskStatus {
    Unknown,
    Created,
    Running,
    Stopped,
    Paused,
    Pausing,
}

/// Answer of [`crate::Shim::state`].
#[derive(Debug, Clone)]
pub struct ProcessState {
    pub id: String,
    pub exec_id: String,
    pub bundle: PathBuf,
    pub pid: u32,
    pub status: TaskStatus,
    pub stdio: Stdio,
    /// Set once stopped.
    pub exit: Option<ExitStatus>,
}

/// Answer of [`crate::Shim::connection`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub shim_pid: u32,
    /// 0 where the shim knows no such task.
    pub task_pid: u32,
}

/// Resource use of one container, from the shim's metrics (cgroup v1 or v2 form).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time since the container's start.
    pub cpu: Duration,
    /// Memory in use, bytes (what counts as used: as the shim's cgroup or /proc says).
    pub memory_bytes: u64,
    /// Resident bytes that can't be reclaimed by dropping cache; equals `memory_bytes` where unknown.
    pub working_set_bytes: u64,
    /// Number of processes (or tasks, where a cgroup counts them).
    pub pids: u64,
    /// Processes that the kernel has killed for want of memory; 0 where no cgroup counts them.
    pub oom_kills: u64,
}

impl From<Mount> for api::Mount {
    fn from(mount: Mount) -> Self {
        Self {
            type_: mount.kind,
            source: mount.source,
            options: mount.options,
            ..Self::default()
        }
    }
}

impl From<api::Status> for TaskStatus {
    fn from(status: api::Status) -> Self {
        match status {
            api::Status::CREATED => Self::Created,
            api::Status::RUNNING => Self::Running,
            api::Status::STOPPED => Self::Stopped,
            api::Status::PAUSED => Self::Paused,
            api::Status::PAUSING => Self::Pausing,
            api::Status::UNKNOWN => Self::Unknown,
        }
    }
}

/// A protobuf timestamp as system time; before 1970 or absent is the epoch.
pub(crate) fn system_time(stamp: Option<&Timestamp>) -> SystemTime {
    let since = stamp.map_or(Duration::ZERO, |t| {
        Duration::new(
            u64::try_from(t.seconds).unwrap_or(0),
            u32::try_from(t.nanos).unwrap_or(0),
        )
    });
    SystemTime::UNIX_EPOCH + since
}
