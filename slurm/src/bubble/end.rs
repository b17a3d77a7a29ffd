//! The bubble's end: pods, daemons, logs, mounts, files, and with its init the namespaces.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::Supervisor;
use crate::logs::tail;
use crate::settings::BUBBLE_ROOT;
use crate::{files, procfs};

/// How long a daemon may take after SIGTERM.
const DAEMON: Duration = Duration::from_millis(1500);
/// What the kubelet may take beyond the pods' grace to see that they have ended.
const OVERTIME: Duration = Duration::from_secs(2);
/// What pods' sandboxes get to end, whose containers have.
const LEFTOVER: Duration = Duration::from_secs(1);
/// Where the kubelet looks for how long its pods have; it removes the file when they have ended.
const SHUTDOWN: &str = "/run/hpk/shutdown";
/// How much of each log is kept, in bytes.
const KEPT: u64 = 2 << 20;

/// Ends everything but this process. Goes on at errors, and returns all.
pub async fn end_processes(supervisor: &Supervisor, grace: Duration) {
    supervisor.begin_stop();
    // First the one that would start pods again: it ends them in their order, with their hooks.
    // At scancel Slurm itself signals every process, the kubelet too: then pods have what is left.
    let began = Instant::now();
    shut_down_kubelet(supervisor, grace).await;
    supervisor.stop("hpk-kubelet", DAEMON).await;
    let left = match Path::new(SHUTDOWN).exists() {
        true => grace.saturating_sub(began.elapsed()),
        false => LEFTOVER,
    };
    end_pods(supervisor, left.max(LEFTOVER)).await;
    let rest = [
        "kube-proxy",
        "coredns",
        "kube-scheduler",
        "kube-controller-manager",
        "hpk-net-daemon",
        "flanneld",
        "kube-apiserver",
        "etcd",
    ];
    for group in rest.chunks(4) {
        let stops = group.iter().map(|name| supervisor.stop(name, DAEMON));
        join(stops).await;
    }
}

/// Lets the kubelet end its pods, and itself. How it is told: kubelet/src/shutdown.rs.
async fn shut_down_kubelet(supervisor: &Supervisor, grace: Duration) {
    let seconds = grace.as_secs().to_string();
    match files::write_private(Path::new(SHUTDOWN), seconds.as_bytes()) {
        Ok(()) => {
            let limit = grace + OVERTIME;
            supervisor
                .signal_to_end("hpk-kubelet", Signal::SIGUSR1, limit)
                .await;
        }
        // Without the file the kubelet doesn't know how long: pods are ended by signals alone.
        Err(error) => eprintln!("hpk-bubble: pods end without their hooks: {error:#}"),
    }
}

async fn join(stops: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut stops: Vec<_> = stops.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        stops.retain_mut(|stop| stop.as_mut().poll(context).is_pending());
        if stops.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

/// SIGTERM to all that is no daemon, and SIGKILL to what is left after the grace.
async fn end_pods(supervisor: &Supervisor, grace: Duration) {
    let end = Instant::now() + grace;
    signal_pods(supervisor, Signal::SIGTERM);
    while !pods(supervisor).is_empty() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    signal_pods(supervisor, Signal::SIGKILL);
}

fn signal_pods(supervisor: &Supervisor, signal: Signal) {
    for pid in pods(supervisor) {
        // Gone already is as good.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Processes of this PID namespace other than its init, this one, and the daemons' groups.
fn pods(supervisor: &Supervisor) -> Vec<i32> {
    let daemons = supervisor.pids();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    // A list that can't be had: the end of the PID namespace ends them.
    procfs::all()
        .unwrap_or_default()
        .into_iter()
        .filter(|(pid, _)| *pid != 1 && *pid != own)
        .filter(|(_, stat)| stat.state != 'Z' && !daemons.contains(&stat.group))
        .map(|(pid, _)| pid)
        .collect()
}

/// Copies the ends of the daemons' logs to the shared file system.
pub fn keep_logs(from: &Path, to: &Path) -> Result<()> {
    files::make_private_dir(to)?;
    let entries = std::fs::read_dir(from).with_context(|| format!("listing {}", from.display()))?;
    for entry in entries.flatten() {
        let text = tail(&entry.path(), KEPT);
        if !text.is_empty() {
            files::write_private(&to.join(entry.file_name()), text.as_bytes())?;
        }
    }
    Ok(())
}

/// Unmounts what pods left mounted, and deletes the folder's content, whose owners only this
/// namespace can name. The host removes the folder itself.
pub fn remove_files() {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let target = line.split(' ').nth(1).unwrap_or_default();
        let below = |dir: &str| target.len() > dir.len() && target.starts_with(dir);
        if below("/run/") || (below(BUBBLE_ROOT) && target != BUBBLE_ROOT) {
            // What stays goes with the mount namespace.
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
    }
    let Ok(entries) = std::fs::read_dir(BUBBLE_ROOT) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // What can't be removed here, the host tries once more.
        let _ = match entry.file_type() {
            Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(&path),
            _ => std::fs::remove_file(&path),
        };
    }
}

/// Ends the PID namespace: the kernel kills its init, and all that is in it with that.
pub fn power_off() -> Result<()> {
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(_) => Ok(()),
        Err(error) => Err(error).context("ending the bubble's PID namespace"),
    }
}
