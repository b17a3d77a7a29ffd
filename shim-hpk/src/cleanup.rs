//! `containerd-shim-hpk-v2 delete`: what a shim that died left of one container.
//!
//! Mounts are in the container's own mount namespace and go with its processes.

use std::{
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{error::Error, procfs::Membership, record};

const END_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Kills the container's processes, waits for their end, removes the shim's files and its socket
/// if nobody serves it. Gives the former pid of the container. Safe to repeat.
///
/// # Errors
/// If the record can't be read, or a process does not end.
pub fn clean(bundle: &Path) -> Result<u32, Error> {
    let mut pid = 0;
    for identity in record::read(bundle)? {
        pid = identity.pid;
        if !identity.is_alive() {
            continue;
        }
        // By mount namespace: it is the container's own even where the PID namespace is the pod's.
        // Never the caller's, though: Apptainer may not have made its own yet.
        let ours = Membership::of(std::process::id() as i32, false);
        let members = Membership::of(identity.pid, false)
            .filter(|m| Some(*m) != ours)
            .map(|m| m.pids())
            .unwrap_or_default();
        for member in members.into_iter().chain([identity.pid]) {
            let _ = kill(Pid::from_raw(member), Signal::SIGKILL);
        }
        let deadline = Instant::now() + END_LIMIT;
        while identity.is_alive() && !is_zombie(identity.pid) {
            if Instant::now() > deadline {
                return Err(Error::TimedOut {
                    what: "a killed container",
                    seconds: END_LIMIT.as_secs(),
                });
            }
            std::thread::sleep(POLL);
        }
    }
    record::remove(bundle);
    remove_dead_socket(bundle);
    Ok(pid as u32)
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
        let _ = std::fs::remove_file(socket);
    }
}
