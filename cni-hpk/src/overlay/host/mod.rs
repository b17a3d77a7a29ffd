//! Mode `host`: this program moves the frames. Its UDP sockets are in the
//! host's network namespace, its TAP in the bubble's, so what pods send each
//! other between nodes never crosses the uplink.
//!
//! Expected flow: [`Prepared::new`] while the process is single-threaded, as
//! entering a user namespace wants it; then [`Prepared::start`] under the
//! runtime, which starts a thread each way for each queue.
//!
//! The frames themselves are the business of the crate `hpk-frames`.
//!
//! Layout:
//! - [`enter`]: the bubble's namespaces
//! - [`statistics`]: what the threads count

pub mod enter;
pub mod statistics;

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;
use tracing::{info, warn};

use hpk_frames::codec::join::Joiner;
use hpk_frames::counters::Counters;
use hpk_frames::receive::{End, Receiving};
use hpk_frames::send::Sending;
use hpk_frames::shared::{SharedTable, View};
use hpk_frames::socket;
use hpk_frames::tap::Tap;

use super::config::Config;
use super::error::Error;
use super::peer::{Own, Peers};
use crate::netlink::{LinkKind, Netlink};
use statistics::Statistics;

/// What has been opened before the first thread.
#[derive(Debug)]
pub struct Prepared {
    port: u16,
    sockets: Vec<UdpSocket>,
    /// Readable when the bubble's process has ended.
    bubble: Option<OwnedFd>,
}

/// Frames are moving.
#[derive(Debug)]
pub struct Forwarding {
    table: Arc<SharedTable>,
    statistics: Statistics,
    /// The peers last known, for a restart while etcd is away.
    peers_file: PathBuf,
    /// Tells why frames no longer move.
    ended: mpsc::Receiver<Error>,
}

/// Beyond this many, other processes of the bubble want the cores.
const MOST_QUEUES: usize = 4;

impl Prepared {
    /// Opens the sockets here, and enters the bubble of `--enter-pid`. The
    /// process must have one thread only.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let port = config.udp_port;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let queues = config.queues.map_or(cores.min(MOST_QUEUES), usize::from);
        let sockets = socket::open(config.host_ip, port, queues, config.socket_buffer as usize)
            .map_err(|source| Error::Socket { port, source })?;
        let bubble = match config.enter_pid {
            Some(pid) => {
                let fail = |source| Error::Enter { pid, source };
                Some(enter::enter(pid).map_err(fail)?)
            }
            None => None,
        };
        Ok(Self {
            port,
            sockets,
            bubble,
        })
    }

    /// Opens the TAP and starts moving frames.
    pub fn start(
        self,
        netlink: &Netlink,
        own: &Own,
        state_file: &Path,
    ) -> Result<Forwarding, Error> {
        let tap = open_tap(netlink, &own.device.name, self.sockets.len())?;
        info!(
            queues = tap.queues.len(),
            udp_segments = tap.udp,
            "moving frames"
        );
        let peers_file = state_file.with_extension("peers");
        let peers = match std::fs::read(&peers_file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(_) => Peers::default(),
        };
        let table = SharedTable::new(own.table(&peers));
        let (end, ended) = mpsc::channel(1);
        let mut statistics = Statistics::new(table.clone());
        for (index, (queue, socket)) in tap.queues.into_iter().zip(self.sockets).enumerate() {
            let counters = Arc::new(Counters::default());
            statistics.sent.push(counters.clone());
            let device = own.device.name.clone();
            let sending = Sending {
                queue: queue.try_clone().map_err(Error::Thread)?,
                socket: socket.try_clone().map_err(Error::Thread)?,
                view: View::new(table.clone()),
                counters,
                mtu: own.device.mtu,
            };
            let name = device.clone();
            spawn(format!("send{index}"), &end, move || Error::Tap {
                device,
                source: sending.run(),
            })?;
            let counters = Arc::new(Counters::default());
            statistics.received.push(counters.clone());
            let watched = socket.try_clone().map_err(Error::Thread)?;
            statistics.sockets.push(Arc::new(watched));
            let receiving = Receiving {
                queue,
                socket,
                view: View::new(table.clone()),
                counters,
                joiner: Joiner::new(own.device.mtu, tap.udp),
            };
            let port = self.port;
            spawn(format!("receive{index}"), &end, move || {
                match receiving.run() {
                    End::Socket(source) => Error::Socket { port, source },
                    End::Tap(source) => Error::Tap {
                        device: name,
                        source,
                    },
                }
            })?;
        }
        if let Some(bubble) = self.bubble {
            spawn("bubble".to_owned(), &end, move || {
                let mut fds = [PollFd::new(bubble.as_fd(), PollFlags::POLLIN)];
                while let Err(Errno::EINTR) = poll(&mut fds, PollTimeout::NONE) {}
                Error::BubbleEnded
            })?;
        }
        Ok(Forwarding {
            table,
            statistics,
            peers_file,
            ended,
        })
    }
}

fn open_tap(netlink: &Netlink, name: &str, queues: usize) -> Result<Tap, Error> {
    let link = netlink.link(name)?;
    if link.as_ref().is_some_and(|link| link.kind != LinkKind::Tap) {
        // Of the other mode.
        netlink.remove_link(name)?;
    }
    let opened = match Tap::open(name, queues) {
        // Made by somebody else, without virtio headers or queues.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && link.is_some() => {
            netlink.remove_link(name)?;
            Tap::open(name, queues)
        }
        opened => opened,
    };
    opened.map_err(|source| Error::Tap {
        device: name.to_owned(),
        source,
    })
}

/// Starts a thread whose end, always an error, is told.
fn spawn(
    name: String,
    end: &mpsc::Sender<Error>,
    work: impl FnOnce() -> Error + Send + 'static,
) -> Result<(), Error> {
    let end = end.clone();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let error = work();
        // Only the first counts; nobody listens when the daemon is ending.
        let _ = end.try_send(error);
    });
    thread.map(drop).map_err(Error::Thread)
}

impl Forwarding {
    /// Sends to, and takes frames from, these from now on.
    pub fn set_peers(&self, own: &Own, peers: &Peers) {
        self.table.set(own.table(peers));
        let part = self.peers_file.with_extension("peers.part");
        let store = || -> io::Result<()> {
            std::fs::write(&part, serde_json::to_vec(peers)?)?;
            std::fs::rename(&part, &self.peers_file)
        };
        if let Err(error) = store() {
            warn!(%error, "could not keep the list of peers for a restart");
        }
    }

    /// What has been counted, now and later.
    pub fn statistics(&self) -> Statistics {
        self.statistics.clone()
    }

    /// Waits for the end, which is always an error.
    pub async fn ended(&mut self) -> Error {
        // One sender lives in each thread.
        self.ended.recv().await.unwrap_or(Error::BubbleEnded)
    }
}
