//! The pod's side, where it needs a process: the TAP is in another user
//! namespace than the bridge, or frames are to go over the socket.
//!
//! Expected flow: ADD starts it with a [`PodSide`] on stdin. It enters the
//! pod's user namespace, if that is another, and network namespace, while it
//! has one thread (setns(2)); makes the TAP and its addresses; and leaves the
//! rest to a child, which is started anew when it is killed. The child joins
//! the TAP to the resident daemon, and again when that one was started anew.
//! DEL kills both, and the TAP goes with its last descriptor.
//!
//! It ends by itself when the daemon doesn't know the attachment any more, and
//! when the folder of its socket is gone, for then the bubble is.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hpk_frames::tap;
use ipnet::IpNet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::client::Daemon;
use super::error::Error;
use super::joined::{Ended, Joined, Side};
use super::launch::READY;
use super::resident::open_tap;
use super::stats::Both;
use super::wire::{Attachment, Form};
use crate::netlink::{Mac, Netlink, Route, address, ipv6, link, route};
use crate::plugin::error::chain;

/// Between two tries to reach a daemon that is being started anew.
const PAUSE: Duration = Duration::from_millis(50);

/// What a pod's side is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSide {
    /// Of the resident daemon's socket.
    pub folder: PathBuf,
    /// Held as long as it lives; its process group stands in it.
    pub lock: PathBuf,
    pub netns: PathBuf,
    /// As the resident daemon knows it.
    pub attachment: Attachment,
    pub form: Form,
    pub interface: PodTap,
}

/// The pod's interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodTap {
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    pub addresses: Vec<IpNet>,
    pub routes: Vec<Route>,
}

/// `hpk-net-daemon relay pod`.
pub fn main() -> Result<(), Error> {
    match prepare() {
        Ok((side, prepared)) => supervise(&side, &prepared),
        Err(error) => {
            // ADD's caller reads it; so it isn't logged.
            println!("{error}: {}", chain(&error));
            Ok(())
        }
    }
}

/// What the child inherits.
#[derive(Debug)]
struct Prepared {
    tap: File,
    /// Readable when everybody who could ask for DEL is gone: the first process
    /// of the PID namespace ADD was run in.
    owner: Option<OwnedFd>,
    _lock: File,
}

fn prepare() -> Result<(PodSide, Prepared), Error> {
    let mut text = Vec::new();
    let read = io::stdin().read_to_end(&mut text);
    let said = |error: io::Error| Error::PodSide(format!("what to do, on stdin: {error}"));
    read.map_err(said)?;
    let side: PodSide = serde_json::from_slice(&text).map_err(|error| said(error.into()))?;
    let lock = hold(&side.lock)?;
    let init = rustix::process::Pid::INIT;
    let owner = rustix::process::pidfd_open(init, rustix::process::PidfdFlags::empty()).ok();
    enter(&side.netns).map_err(|source| Error::Enter {
        path: side.netns.clone(),
        source,
    })?;
    let tap = make(&side.interface)?;
    Ok((
        side,
        Prepared {
            tap,
            owner,
            _lock: lock,
        },
    ))
}

/// One of an attachment at a time.
fn hold(path: &Path) -> Result<File, Error> {
    let open = || {
        if let Some(folder) = path.parent() {
            super::socket::make_folder(folder)?;
        }
        let mut options = File::options();
        let mut file = options
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        file.try_lock()?;
        file.set_len(0)?;
        file.write_all(std::process::id().to_string().as_bytes())?;
        Ok(file)
    };
    open().map_err(|source: io::Error| Error::File {
        operation: "hold",
        path: path.to_owned(),
        source,
    })
}

/// Kills the pod's side that holds `lock`, if there is one, and waits for its
/// end.
pub fn stop(lock: &Path) -> Result<(), Error> {
    let fail = |source| Error::File {
        operation: "end the process that holds",
        path: lock.to_owned(),
        source,
    };
    let mut file = match File::options().read(true).write(true).open(lock) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail(error)),
    };
    while let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
        let mut text = String::new();
        file.rewind().map_err(fail)?;
        file.read_to_string(&mut text).map_err(fail)?;
        // It is locked but not yet written for a moment only.
        if let Ok(group) = text.parse() {
            match killpg(Pid::from_raw(group), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(fail(errno.into())),
            }
            file.lock().map_err(fail)?;
            break;
        }
        std::thread::yield_now();
    }
    match std::fs::remove_file(lock) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
        _ => Ok(()),
    }
}

/// Enters a network namespace, and before it the user namespace it belongs to
/// where that isn't ours already.
fn enter(netns: &Path) -> io::Result<()> {
    let network = File::open(netns)?;
    match setns(&network, CloneFlags::CLONE_NEWNET) {
        Err(Errno::EPERM) => {}
        result => return Ok(result?),
    }
    setns(owner_of(&network)?, CloneFlags::CLONE_NEWUSER)?;
    Ok(setns(&network, CloneFlags::CLONE_NEWNET)?)
}

/// The user namespace that owns another namespace (ioctl_ns(2)).
#[allow(unsafe_code)]
fn owner_of(namespace: &File) -> io::Result<OwnedFd> {
    nix::ioctl_none_bad!(ns_get_userns, 0xb701);
    // SAFETY: the descriptor is open; the ioctl takes no argument.
    let raw = unsafe { ns_get_userns(namespace.as_raw_fd()) }?;
    // SAFETY: the ioctl has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Makes the TAP, with its addresses and routes.
fn make(interface: &PodTap) -> Result<File, Error> {
    let name = interface.name.as_str();
    let tap = open_tap(name, false)?;
    configure(&Netlink::open()?, interface)?;
    Ok(tap)
}

fn configure(netlink: &Netlink, interface: &PodTap) -> Result<(), Error> {
    let name = interface.name.as_str();
    if interface.addresses.iter().any(|it| it.addr().is_ipv6()) {
        ipv6::quiet(name)?;
    }
    let index = netlink.index(name)?;
    let addresses = interface.addresses.iter();
    let routes = interface.routes.iter();
    let changes = [
        link::set_mac(name, interface.mac),
        link::set_mtu(name, interface.mtu),
    ]
    .into_iter()
    .chain(addresses.map(|address| address::add(index, *address, false)))
    .chain([link::set_up(name)])
    .chain(routes.map(|route| route::set(index, route)));
    Ok(netlink.apply(changes)?)
}

/// Keeps a child at work until it says that there is no more.
fn supervise(side: &PodSide, prepared: &Prepared) -> Result<(), Error> {
    loop {
        // SAFETY: this process has one thread, so the child may do anything.
        #[allow(unsafe_code)]
        let forked = unsafe { fork() };
        match forked.map_err(|errno| Error::Start(errno.into()))? {
            ForkResult::Child => {
                work(side, prepared);
                return Ok(());
            }
            ForkResult::Parent { child } => {
                // The child alone says when it is ready.
                close_stdout()?;
                match waitpid(child, None) {
                    Err(Errno::EINTR) => {}
                    Ok(WaitStatus::Signaled(_, signal, _)) => {
                        warn!(attachment = %side.attachment, %signal, "started anew");
                    }
                    _ => return Ok(()),
                }
            }
        }
    }
}

fn close_stdout() -> Result<(), Error> {
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .map_err(Error::Start)?;
    nix::unistd::dup2_stdout(&null).map_err(|errno| Error::Start(errno.into()))
}

/// Joins, and joins again.
fn work(side: &PodSide, prepared: &Prepared) {
    let daemon = Daemon::of(&side.folder);
    let counters = Arc::new(Both::default());
    let mut ready = false;
    loop {
        match work_once(side, prepared, &daemon, &counters, &mut ready) {
            Ok(()) => {}
            Err(error) if !ready => {
                // ADD's caller reads it.
                println!("{error}: {}", chain(&error));
                return;
            }
            Err(Error::Unknown(_)) => return info!(attachment = %side.attachment, "released"),
            Err(Error::NoDaemon { .. } | Error::Talk { .. }) => {}
            Err(error) => {
                warn!(attachment = %side.attachment, %error, cause = chain(&error), "not joined");
            }
        }
        if !side.folder.exists() || tap::describe(&prepared.tap).is_err() {
            return info!(attachment = %side.attachment, "nothing left to join");
        }
        std::thread::sleep(PAUSE);
    }
}

/// Until the daemon, or the frames, have come to an end.
fn work_once(
    side: &PodSide,
    prepared: &Prepared,
    daemon: &Daemon,
    counters: &Arc<Both>,
    ready: &mut bool,
) -> Result<(), Error> {
    let tap = prepared.tap.try_clone().map_err(Error::Start)?;
    // The TAP comes first where it comes; the owner is the last.
    let mut descriptors = Vec::new();
    if side.form == Form::Descriptor {
        descriptors.push(tap.as_fd());
    }
    descriptors.extend(prepared.owner.as_ref().map(AsFd::as_fd));
    let connection = daemon.ask_to_join(&side.attachment, side.form, &descriptors)?;
    let mut now_ready = || {
        if !std::mem::replace(ready, true) {
            println!("{READY}");
            return close_stdout();
        }
        Ok(())
    };
    match side.form {
        Form::Descriptor => {
            now_ready()?;
            wait_for_end(connection);
        }
        Form::Frames => {
            // The reader below sees the end.
            let nobody: Ended = Arc::new(|| {});
            let joined = Joined::over(
                &side.attachment,
                tap,
                connection,
                Side::Pod,
                counters.clone(),
                &nobody,
            )
            .map_err(Error::Start)?;
            now_ready()?;
            wait_for_end(joined.stopped().map_err(Error::Start)?);
        }
    }
    Ok(())
}

/// Nothing is ever written to it.
fn wait_for_end(line: impl AsFd) {
    let mut fds = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
    while let Err(Errno::EINTR) = poll(&mut fds, PollTimeout::NONE) {}
}
