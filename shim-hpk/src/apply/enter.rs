//! A further process in a container: `hpk-pause enter`, no Apptainer.
#![allow(unsafe_code)]

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{fs::MetadataExt, fs::OpenOptionsExt, process::CommandExt},
    },
    process::{Command, Stdio},
};

use hpk_cgroup::Cgroup;
use hpk_pause::wire;
use nix::sched::CloneFlags;

use super::{Waiting, channel, programs::Programs, reaper};
use crate::error::Error;

/// In the order they are joined: the mount namespace before the last, as /proc goes with it.
const NAMESPACES: [(&str, CloneFlags); 6] = [
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// The container to enter.
pub struct Target<'a> {
    /// Its first process.
    pub init: i32,
    pub cgroup: &'a Cgroup,
}

/// Sets a process up in a container, up to its exec.
///
/// # Errors
/// The step that failed; nothing is left of the process then.
pub async fn enter(
    Target { init, cgroup }: Target<'_>,
    process: wire::Process,
    streams: &[OwnedFd],
    programs: &Programs,
    reaper: &reaper::Reaper,
) -> Result<Waiting, Error> {
    let mut owned = Vec::new();
    let mut joined = Vec::new();
    for (name, flag) in NAMESPACES {
        if let Some(namespace) = foreign_namespace(init, name)? {
            joined.push((owned.len(), flag));
            owned.push(namespace);
        }
    }
    let root = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(format!("/proc/{init}/root"))
        .map_err(Error::system("open the container's root"))?;
    owned.push(root.into());

    let mut fds: Vec<BorrowedFd<'_>> = streams.iter().map(AsFd::as_fd).collect();
    // The configuration's own file is descriptor 0.
    let base = fds.len() + 1;
    let index = |n: usize| (base + n) as wire::Fd;
    let forks = joined
        .iter()
        .any(|(_, flag)| *flag == CloneFlags::CLONE_NEWPID);
    let config = wire::Config {
        namespaces: joined
            .iter()
            .map(|&(n, flag)| (index(n), flag.bits() as u32))
            .collect(),
        root: Some(index(owned.len() - 1)),
        setup: None,
        process,
    };
    fds.extend(owned.iter().map(AsFd::as_fd));

    let (mut channel, theirs) = channel::pair()?;
    let helper_pid = spawn(programs, &theirs)?;
    let mut exit = reaper.watch(helper_pid);
    drop(theirs);
    // Before it is told anything: what it forks is in the cgroup from the beginning.
    cgroup.join(helper_pid)?;
    channel.configure(&config, &fds).await?;
    let ended = || Error::Container("the process ended in its set-up".into());
    let ready = channel.ready().await?.ok_or_else(ended)?;
    for warning in &ready.warnings {
        log::warn!("exec: {warning}");
    }
    if forks {
        let helper_exit = std::mem::replace(&mut exit, reaper.watch(ready.pid));
        // Only with the helper gone is the process our child.
        reaper::ended(helper_exit).await;
    }
    Ok(Waiting {
        pid: ready.pid,
        exit,
        channel,
        terminal: ready.terminal,
    })
}

fn spawn(programs: &Programs, socket: &OwnedFd) -> Result<i32, Error> {
    let number = socket.as_raw_fd();
    let mut command = Command::new(format!("/proc/self/fd/{}", programs.pause()?.as_raw_fd()));
    command
        .arg0("hpk-pause")
        .args(["enter", &number.to_string()])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: one system call, with integers.
    unsafe {
        command.pre_exec(move || {
            libc::fcntl(number, libc::F_SETFD, 0);
            Ok(())
        });
    }
    let child = command.spawn().map_err(Error::system("run hpk-pause"))?;
    Ok(child.id() as i32)
}

/// The namespace of `pid`, unless it is the shim's own.
fn foreign_namespace(pid: i32, name: &str) -> Result<Option<OwnedFd>, Error> {
    let failed = || Error::system(format!("open the container's {name} namespace"));
    let theirs = match File::open(format!("/proc/{pid}/ns/{name}")) {
        // A kernel without that kind of namespace.
        Err(e)
            if e.kind() == std::io::ErrorKind::NotFound
                && std::path::Path::new("/proc/self/ns")
                    .join(name)
                    .symlink_metadata()
                    .is_err() =>
        {
            return Ok(None);
        }
        other => other.map_err(failed())?,
    };
    let ours = std::fs::metadata(format!("/proc/self/ns/{name}")).map_err(failed())?;
    let same = theirs.metadata().map_err(failed())?.ino() == ours.ino();
    Ok((!same).then(|| theirs.into()))
}
