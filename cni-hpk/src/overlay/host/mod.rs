//! Mode `host`: this program moves the frames. Its UDP socket is in the
//! host's network namespace, its TAP in the bubble's, so what pods send each
//! other between nodes never crosses the uplink.
//!
//! Expected flow: [`Prepared::new`] while the process is single-threaded, as
//! entering a user namespace wants it; then [`Prepared::start`] under the
//! runtime, which starts a thread each way.
//!
//! Layout:
//! - [`tap`]: the device
//! - [`frames`]: which frame goes where, and which is taken

pub mod frames;
pub mod tap;

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::config::Config;
use super::error::Error;
use super::peer::{Own, Peers};
use crate::netlink::{LinkKind, Netlink};
use frames::Table;

/// What has been opened before the first thread.
#[derive(Debug)]
pub struct Prepared {
    socket: UdpSocket,
    /// Readable when the bubble's process has ended.
    bubble: Option<OwnedFd>,
}

/// Frames are moving.
#[derive(Debug)]
pub struct Forwarding {
    table: Arc<RwLock<Table>>,
    /// The peers last known, for a restart while etcd is away.
    peers_file: PathBuf,
    /// Tells why frames no longer move.
    ended: mpsc::Receiver<Error>,
}

/// Asked for; the kernel gives at most rmem_max and wmem_max, without telling.
const SOCKET_BUFFER: usize = 4 << 20;

impl Prepared {
    /// Opens the socket here, and enters the bubble of `--enter-pid`. The
    /// process must have one thread only (setns(2)).
    pub fn new(config: &Config) -> Result<Self, Error> {
        let port = config.udp_port;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
            .map_err(|source| Error::Socket { port, source })?;
        // Less than asked for is slower, not wrong.
        let _ = setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER);
        let _ = setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER);
        let bubble = match config.enter_pid {
            Some(pid) => {
                let fail = |source| Error::Enter { pid, source };
                Some(enter(pid).map_err(fail)?)
            }
            None => None,
        };
        Ok(Self { socket, bubble })
    }

    /// Opens the TAP and starts moving frames.
    pub async fn start(
        self,
        netlink: &Netlink,
        own: &Own,
        state_file: &Path,
    ) -> Result<Forwarding, Error> {
        let name = own.device.name.as_str();
        let link = netlink.link(name).await?;
        if link.is_some_and(|link| link.kind != LinkKind::Tap) {
            // Of the other mode.
            netlink.remove_link(name).await?;
        }
        let fail = |source| Error::Tap {
            device: name.to_owned(),
            source,
        };
        let tap = tap::open(name).map_err(fail)?;
        let peers_file = state_file.with_extension("peers");
        let peers = match std::fs::read(&peers_file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(_) => Peers::default(),
        };
        let table = Arc::new(RwLock::new(Table::new(own.record.vni, &peers)));
        let (end, ended) = mpsc::channel(3);
        let start = |result: io::Result<std::thread::JoinHandle<()>>| {
            result.map(drop).map_err(Error::Thread)
        };
        let thread = || std::thread::Builder::new();
        {
            let (tap, table, end) = (tap.try_clone().map_err(fail)?, table.clone(), end.clone());
            let socket = self.socket.try_clone().map_err(Error::Thread)?;
            let device = name.to_owned();
            start(thread().name("send".to_owned()).spawn(move || {
                let source = send_frames(&tap, &socket, &table);
                let _ = end.blocking_send(Error::Tap { device, source });
            }))?;
        }
        {
            let (table, end) = (table.clone(), end.clone());
            let port = self.socket.local_addr().map_or(0, |address| address.port());
            start(thread().name("receive".to_owned()).spawn(move || {
                let source = receive_frames(&tap, &self.socket, &table);
                let _ = end.blocking_send(Error::Socket { port, source });
            }))?;
        }
        if let Some(bubble) = self.bubble {
            start(thread().name("bubble".to_owned()).spawn(move || {
                let mut fds = [PollFd::new(bubble.as_fd(), PollFlags::POLLIN)];
                while let Err(Errno::EINTR) = poll(&mut fds, PollTimeout::NONE) {}
                let _ = end.blocking_send(Error::BubbleEnded);
            }))?;
        }
        Ok(Forwarding {
            table,
            peers_file,
            ended,
        })
    }
}

impl Forwarding {
    /// Sends to, and takes frames from, these from now on.
    pub fn set_peers(&self, own: &Own, peers: &Peers) {
        let table = Table::new(own.record.vni, peers);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
        let part = self.peers_file.with_extension("peers.part");
        let store = || {
            std::fs::write(&part, serde_json::to_vec(peers)?)?;
            std::fs::rename(&part, &self.peers_file)
        };
        if let Err(error) = store() {
            warn!(%error, "could not keep the list of peers for a restart");
        }
    }

    /// Waits for the end, which is always an error.
    pub async fn ended(&mut self) -> Error {
        // One sender lives in each thread.
        self.ended.recv().await.unwrap_or(Error::BubbleEnded)
    }
}

/// Enters the user and network namespace of `pid`; returns what tells its end.
fn enter(pid: i32) -> io::Result<OwnedFd> {
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

const BUFFER: usize = 65536;

fn send_frames(tap: &File, socket: &UdpSocket, table: &RwLock<Table>) -> io::Error {
    use std::io::Read as _;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match (&mut &*tap).read(&mut buffer[frames::HEADER..]) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return error,
        };
        let packet = &mut buffer[..frames::HEADER + length];
        let target = {
            let table = table.read().unwrap_or_else(PoisonError::into_inner);
            table.outgoing(packet)
        };
        // What can't be sent is lost, as on any wire.
        if let Some(target) = target
            && let Err(error) = socket.send_to(packet, target)
        {
            debug!(%error, %target, "frame lost");
        }
    }
}

fn receive_frames(tap: &File, socket: &UdpSocket, table: &RwLock<Table>) -> io::Error {
    use std::io::Write as _;
    use std::net::SocketAddr;
    let mut buffer = vec![0; BUFFER];
    loop {
        let (length, source) = match socket.recv_from(&mut buffer) {
            Ok((length, SocketAddr::V4(source))) => (length, source),
            Ok(_) => continue,
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused => continue,
                _ => return error,
            },
        };
        let frame = {
            let table = table.read().unwrap_or_else(PoisonError::into_inner);
            table.incoming(source, &buffer[..length])
        };
        match frame {
            Ok(frame) => {
                if let Err(error) = (&mut &*tap).write(frame) {
                    match error.raw_os_error() {
                        // The device is gone.
                        Some(libc::EBADFD) => return error,
                        _ => debug!(%error, "frame lost"),
                    }
                }
            }
            Err(reason) => debug!(%source, ?reason, "datagram refused"),
        }
    }
}
