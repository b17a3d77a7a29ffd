//! Links, addresses, routes and neighbours of one network namespace, over
//! rtnetlink; and its NAT, over nfnetlink.
//!
//! A [`Netlink`] belongs to the namespace it was opened in, for good: one for
//! a pod is opened by a thread that enters the pod's namespace and ends.
//!
//! Layout:
//! - [`link`]: the devices
//! - [`address`]: their addresses
//! - [`ipv6`]: what IPv6 does of itself
//! - [`route`], [`neighbour`]: where packets go by them
//! - [`nat`]: the nftables table `hpk`
//! - [`socket`]: what both are spoken over
//! - [`error`]

pub mod address;
pub mod error;
pub mod ipv6;
pub mod link;
pub mod nat;
pub mod neighbour;
pub mod route;
pub mod socket;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::SockProtocol;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;

use socket::{NLM_F_ACK, NLM_F_REQUEST, NLMSG_DONE, Socket};

pub use error::Error;
pub use link::{Link, LinkKind, Mac, Vxlan};
pub use neighbour::Neighbour;
pub use route::Route;

/// A route socket of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Mutex<Socket>,
}

/// A change that the kernel is asked for.
#[derive(Debug)]
pub struct Change {
    message: RouteNetlinkMessage,
    flags: u16,
    /// What is said of it if it fails.
    operation: &'static str,
    operand: String,
    /// Refusals that mean that it is so already.
    allowed: &'static [i32],
}

impl Change {
    fn new(
        message: RouteNetlinkMessage,
        flags: u16,
        operation: &'static str,
        operand: impl fmt::Display,
    ) -> Self {
        Self {
            message,
            flags,
            operation,
            operand: operand.to_string(),
            allowed: &[],
        }
    }

    fn allowing(self, allowed: &'static [i32]) -> Self {
        Self { allowed, ..self }
    }
}

impl Netlink {
    /// Opens one in the calling thread's namespace.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(SockProtocol::NetlinkRoute);
        Ok(Self {
            socket: socket
                .map(Mutex::new)
                .map_err(|source| Error::new("open", "netlink", source))?,
        })
    }

    /// Opens one in the namespace at `path`.
    pub fn open_in(path: &Path) -> Result<Self, Error> {
        in_namespace(path, Self::open)
            .map_err(|source| Error::new("enter network namespace", path.display(), source))?
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for all of `changes` with one system call; the kernel makes them in
    /// order. It goes on after one that fails; the first failure is returned.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) -> Result<(), Error> {
        let changes: Vec<Change> = changes.into_iter().collect();
        let Some(last) = changes.len().checked_sub(1) else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            // A failure is told in any case; success once is enough.
            let flags = match index == last {
                true => change.flags | NLM_F_REQUEST | NLM_F_ACK,
                false => change.flags | NLM_F_REQUEST,
            };
            put(&mut bytes, change.message.clone(), flags, index);
        }
        let mut refused: Option<(usize, io::Error)> = None;
        let mut exchange = || -> io::Result<()> {
            let mut socket = self.socket();
            socket.send(&bytes)?;
            let mut done = false;
            while !done {
                socket.receive(|answer| {
                    let index = answer.sequence as usize;
                    let Some(errno) = answer.error() else {
                        return Ok(());
                    };
                    let allowed = changes.get(index).map_or(&[][..], |it| it.allowed);
                    if errno != 0 && !allowed.contains(&errno) {
                        let error = io::Error::from_raw_os_error(errno);
                        refused.get_or_insert((index, error));
                    }
                    done |= index == last;
                    Ok(())
                })?;
            }
            Ok(())
        };
        let exchanged = exchange().err().map(|error| (last, error));
        match refused.or(exchanged) {
            None => Ok(()),
            Some((index, source)) => {
                let of = &changes[index.min(last)];
                Err(Error::new(of.operation, &of.operand, source))
            }
        }
    }

    /// Asks a question and gives each answer to `accept`.
    fn ask(
        &self,
        question: RouteNetlinkMessage,
        flags: u16,
        mut accept: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        put(&mut bytes, question, flags | NLM_F_REQUEST, 0);
        let mut socket = self.socket();
        socket.send(&bytes)?;
        let mut done = false;
        while !done {
            socket.receive(|answer| {
                done |= answer.is_last();
                match answer.error() {
                    Some(0) => {}
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    None if answer.kind == NLMSG_DONE => {}
                    None => {
                        let message = NetlinkMessage::deserialize(answer.whole);
                        if let NetlinkPayload::InnerMessage(message) =
                            message.map_err(io::Error::other)?.payload
                        {
                            accept(message);
                        }
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Appends a message; its number says which answers are its.
fn put(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, index: usize) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    // Far fewer than 2^32.
    message.header.sequence_number = index as u32;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

/// Runs `work` on a thread of its own in the network namespace at `path`.
pub fn in_namespace<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, io::Error> {
    let namespace = File::open(path)?;
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}
