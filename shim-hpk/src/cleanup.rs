//! `containerd-shim-hpk-v2 delete`: what a shim that died left of one container.
//!
//! Mounts are in the container's own mount namespace and go with its processes, but for those that a helper made.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use containerd_shim::DeleteResponse;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    apply::hooks,
    bootstrap::timestamp,
    config,
    error::Error,
    plan,
    procfs::Membership,
    record::{self, Identity},
};

const END_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);
/// What a killed container's exit is reported as: SIGKILL.
const KILLED: u32 = 128 + libc::SIGKILL as u32;

/// Does `delete`.
///
/// # Errors
/// If the record can't be read, or a process or a cgroup does not go.
pub fn delete(id: &str, bundle: &Path) -> Result<DeleteResponse, Error> {
    Ok(DeleteResponse {
        pid: clean(id, bundle)?,
        exit_status: KILLED,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..Default::default()
    })
}

/// Kills the container's processes, waits for their end, removes its cgroup, the shim's files and its
/// socket if nobody serves it. Gives the former pid of the container. Safe to repeat.
fn clean(id: &str, bundle: &Path) -> Result<u32, Error> {
    let Some(remembered) = record::read(bundle)? else {
        // The root file system is mounted before there is a record.
        record::remove(bundle);
        remove_dead_socket(bundle);
        return Ok(0);
    };
    let leaves: Vec<PathBuf> = hpk_cgroup::leaves(&remembered.cgroup).cloned().collect();
    hpk_cgroup::freezer::thaw_all(&leaves);
    let mut pid = 0;
    for identity in &remembered.processes {
        pid = identity.pid;
        end(identity)?;
    }
    end_all_in(&leaves)?;
    let deadline = Instant::now() + END_LIMIT;
    while let Err(source) = hpk_cgroup::try_remove(&remembered.cgroup) {
        if Instant::now() > deadline {
            return Err(Error::system("remove the container's cgroup")(source));
        }
        std::thread::sleep(POLL);
    }
    if let Err(e) = run_poststop(id, bundle) {
        // The container is gone all the same.
        eprintln!("containerd-shim-hpk-v2: {e}");
    }
    record::remove(bundle);
    remove_dead_socket(bundle);
    Ok(pid as u32)
}

fn run_poststop(id: &str, bundle: &Path) -> Result<(), Error> {
    let hooks = plan::hooks::plan(&config::load(bundle)?, id, bundle)?;
    hooks::run_alone(&hooks.poststop, &hooks.state("stopped", None))
}

fn end(identity: &Identity) -> Result<(), Error> {
    if !identity.is_alive() {
        return Ok(());
    }
    // By mount namespace: it is the container's own even where the PID namespace is the pod's.
    // Never the caller's, though: Apptainer may not have made its own yet.
    let ours = Membership::of(std::process::id() as i32, false);
    let members = Membership::of(identity.pid, false)
        .filter(|m| Some(*m) != ours)
        .map(|m| m.pids())
        .unwrap_or_default();
    for member in members.into_iter().chain([identity.pid]) {
        // ESRCH: it has ended by itself.
        let _ = kill(Pid::from_raw(member), Signal::SIGKILL);
    }
    wait_until("a killed container", || {
        !identity.is_alive() || is_zombie(identity.pid)
    })
}

/// Whoever is in the container's cgroup still, such as an exec that its shim left half done.
fn end_all_in(leaves: &[PathBuf]) -> Result<(), Error> {
    wait_until("what is left in a killed container's cgroup", || {
        let mut left = 0;
        for leaf in leaves {
            let text = std::fs::read_to_string(leaf.join("cgroup.procs")).unwrap_or_default();
            for pid in text.lines().filter_map(|line| line.parse().ok()) {
                left += 1;
                // ESRCH: it has ended by itself.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        left == 0
    })
}

fn wait_until(what: &'static str, mut done: impl FnMut() -> bool) -> Result<(), Error> {
    let deadline = Instant::now() + END_LIMIT;
    while !done() {
        if Instant::now() > deadline {
            return Err(Error::TimedOut {
                what,
                seconds: END_LIMIT.as_secs(),
            });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| {
        text.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    })
}

/// A pod's other containers may still have a live shim there.
fn remove_dead_socket(bundle: &Path) {
    let Ok(address) = std::fs::read_to_string(bundle.join("address")) else {
        return;
    };
    let socket = address.trim().trim_start_matches("unix://");
    if let Err(e) = UnixStream::connect(socket)
        && e.kind() == std::io::ErrorKind::ConnectionRefused
    {
        // Gone meanwhile: just as well.
        let _ = std::fs::remove_file(socket);
    }
}
