//! The bubble's namespaces.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};

/// Enters the user and network namespace of `pid`; returns what tells its end.
/// The process must have one thread only (setns(2)).
pub fn enter(pid: i32) -> io::Result<OwnedFd> {
    let process = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    // Held before its namespaces are opened: a new process of the same number
    // would have others.
    let process = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())?;
    let user = File::open(format!("/proc/{pid}/ns/user"))?;
    let network = File::open(format!("/proc/{pid}/ns/net"))?;
    if !same_file(&user, &File::open("/proc/self/ns/user")?)? {
        setns(user, CloneFlags::CLONE_NEWUSER)?;
    }
    setns(network, CloneFlags::CLONE_NEWNET)?;
    Ok(process)
}

fn same_file(one: &File, other: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}
