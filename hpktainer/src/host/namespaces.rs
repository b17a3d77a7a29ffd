//! New namespaces: this process becomes root of a user and mount namespace (the user namespace may be a local bubble's),
//! its child the first process of a PID namespace, and the child's child goes on as hpktainer.
//!
//! The first process reaps what is orphaned and ends with hpktainer; and with it, by the kernel, all that is left: the
//! shim, the container, the pod's side of the network, every mount. It is killed itself when its parent is.
//!
//! Signals that a process sends are passed down; those of a terminal come to all of its processes anyway.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use hpk_userns::Ids;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, setresgid, setresuid};

use super::code_of;
use super::local::LocalBubble;

/// Returns nothing in the process that goes on, and in this one, when that one has ended, its exit code.
pub fn enter(background: bool, bubble: Option<&LocalBubble>) -> anyhow::Result<Option<u8>> {
    let network = match bubble {
        None => {
            become_root()?;
            None
        }
        Some(bubble) => Some(join(bubble)?),
    };
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .context("keeping mounts to ourselves")?;
    if let (Some(bubble), Some(network)) = (bubble, network) {
        pin(&network, &bubble.network())?;
    }
    let before = block()?;
    // SAFETY: this process has one thread, so each side may go on as it likes.
    match unsafe { fork() }.context("forking")? {
        ForkResult::Parent { child } => {
            leave_output(background)?;
            Ok(Some(attend(child)?))
        }
        ForkResult::Child => {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("asking to be killed")?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("proc"), "/proc", Some("proc"), flags, none).context("mounting /proc")?;
            // SAFETY: as above.
            match unsafe { fork() }.context("forking")? {
                ForkResult::Parent { child } => {
                    leave_output(background)?;
                    Ok(Some(attend(child)?))
                }
                ForkResult::Child => {
                    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)
                        .context("letting signals through")?;
                    Ok(None)
                }
            }
        }
    }
}

/// Joins a local bubble's user namespace; mount and PID namespace are our own. Gives the bubble's network, which only CNI's
/// plugins enter: a registry may be reachable by the host's loopback alone, as its resolver often is.
fn join(bubble: &LocalBubble) -> anyhow::Result<File> {
    let user = bubble.namespace("user")?;
    let network = bubble.namespace("net")?;
    setns(user, CloneFlags::CLONE_NEWUSER).context("joining the local bubble's users")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
        .context("making a mount and PID namespace")?;
    set_root()?;
    Ok(network)
}

/// Binds a namespace to a file, for this mount namespace: its process can't be found by number in a new PID namespace.
fn pin(namespace: &File, file: &Path) -> anyhow::Result<()> {
    crate::locks::open(file)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
    let none = None::<&str>;
    mount(Some(&source), file, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("pinning the local bubble's network to {}", file.display()))
}

fn set_root() -> anyhow::Result<()> {
    setresgid(0.into(), 0.into(), 0.into()).context("becoming group 0")?;
    setresuid(0.into(), 0.into(), 0.into()).context("becoming user 0")
}

/// Makes the namespaces. A child that stays outside writes the maps of ids: we can't, any more.
fn become_root() -> anyhow::Result<()> {
    let ids = Ids::of_this_user(&std::env::var("PATH").unwrap_or_default())?;
    let (entered, mut tell) = io::pipe().context("making a pipe")?;
    let pid = getpid();
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.context("forking")? {
        ForkResult::Child => {
            drop(tell);
            std::process::exit(match map_when_told(entered, &ids, pid) {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("hpktainer: {error:#}");
                    1
                }
            })
        }
        ForkResult::Parent { child } => {
            drop(entered);
            let flags =
                CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
            let made = unshare(flags).context("making a user, mount and PID namespace");
            if made.is_ok() {
                tell.write_all(b"!").context("telling the mapper")?;
            }
            drop(tell);
            let mapped = wait(child)?;
            made?;
            if mapped != Some(0) {
                bail!("ids can't be mapped");
            }
        }
    }
    set_root()
}

fn map_when_told(mut entered: PipeReader, ids: &Ids, pid: Pid) -> anyhow::Result<()> {
    let mut told = [0];
    match entered.read(&mut told).context("waiting to map ids")? {
        // It failed, and says so itself.
        0 => Ok(()),
        _ => Ok(ids.map(pid.as_raw().unsigned_abs())?),
    }
}

fn wait(child: Pid) -> anyhow::Result<Option<u8>> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            status => return Ok(code_of(status.context("waiting for a child")?)),
        }
    }
}

/// Signals that are passed down.
const PASSED: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

fn watched() -> SigSet {
    let mut set: SigSet = PASSED.into_iter().collect();
    set.add(Signal::SIGCHLD);
    set
}

/// Blocks what [`attend`] waits for; returns what was blocked before.
fn block() -> anyhow::Result<SigSet> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&watched()), Some(&mut before))
        .context("blocking signals")?;
    Ok(before)
}

/// Reaps children and passes signals to `child`, until that has ended.
fn attend(child: Pid) -> anyhow::Result<u8> {
    loop {
        match next_signal().context("waiting for a signal")? {
            (Signal::SIGCHLD, _) => {
                if let Some(code) = reap(child)? {
                    return Ok(code);
                }
            }
            // A terminal that hangs up tells the session's leader alone, which this may be.
            (signal @ Signal::SIGHUP, _) | (signal, true) => match kill(child, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno).context("passing a signal on"),
            },
            // The terminal's: the child has got it, too.
            (_, false) => {}
        }
    }
}

/// The next of the blocked signals, and whether a process sent it.
fn next_signal() -> io::Result<(Signal, bool)> {
    let set = watched();
    // SAFETY: all-zero bytes are a valid siginfo_t, which the call fills in.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both point to values that outlive the call.
        let number = unsafe { libc::sigwaitinfo(set.as_ref(), &raw mut info) };
        match Errno::result(number) {
            Err(Errno::EINTR) => {}
            number => return Ok((Signal::try_from(number?)?, info.si_code <= 0)),
        }
    }
}

fn reap(child: Pid) -> anyhow::Result<Option<u8>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("reaping"),
            Ok(status) if status.pid() == Some(child) => {
                if let Some(code) = code_of(status) {
                    return Ok(Some(code));
                }
            }
            Ok(_) => {}
        }
    }
}

/// In the background, whoever waits for the end of our output waits for hpktainer's alone, and the terminal's end is
/// none of ours.
fn leave_output(background: bool) -> anyhow::Result<()> {
    if !background {
        return Ok(());
    }
    match nix::unistd::setsid() {
        // EPERM: it leads its group already, and is no session's of a terminal then.
        Ok(_) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno).context("leaving the terminal's session"),
    }
    let null = File::options().write(true).open("/dev/null");
    let null = null.context("opening /dev/null")?;
    nix::unistd::dup2_stdout(null.as_fd()).context("leaving stdout")?;
    nix::unistd::dup2_stderr(null.as_fd()).context("leaving stderr")
}
