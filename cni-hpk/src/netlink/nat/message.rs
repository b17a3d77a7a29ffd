//! Messages of nfnetlink, and their way through its socket.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// A netlink message, or the inside of a nested attribute, being written.
#[derive(Debug)]
pub struct Message(Vec<u8>);

/// Length of `struct nlmsghdr`, bytes.
const HEADER: usize = 16;

impl Message {
    pub fn new(kind: u16, flags: u16, family: u8, sequence: u32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&[family, 0, 0, 0]);
        Self(bytes)
    }

    /// The brackets around a transaction.
    pub fn batch(kind: u16, sequence: u32) -> Vec<u8> {
        let mut message = Self::new(kind, NLM_F_REQUEST, 0, sequence);
        message.0[18..20].copy_from_slice(&SUBSYSTEM.to_be_bytes());
        message.finish()
    }

    /// The whole message, its length written.
    pub fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let mut inside = Self(Vec::new());
        fill(&mut inside);
        self.bytes(kind | NLA_F_NESTED, &inside.0);
    }
}

/// A socket of nfnetlink, in the calling thread's network namespace.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        Ok(Self(socket))
    }

    /// Sends a question and gives each answer's kind and body to `accept`.
    /// What isn't there has no answers.
    pub fn ask(&self, message: Message, mut accept: impl FnMut(u16, &[u8])) -> io::Result<()> {
        send(self.0.as_raw_fd(), &message.finish(), MsgFlags::empty())?;
        let mut done = false;
        while !done {
            self.receive(|kind, body| {
                match kind {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => match error_code(body)? {
                        0 | libc::ENOENT => done = true,
                        errno => return Err(io::Error::from_raw_os_error(errno)),
                    },
                    _ => accept(kind, body),
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Sends a batch and waits until the kernel has said yes to each of its
    /// `changes`, or no to one.
    pub fn transact(&self, batch: &[u8], mut changes: usize) -> io::Result<()> {
        send(self.0.as_raw_fd(), batch, MsgFlags::empty())?;
        while changes > 0 {
            self.receive(|kind, body| {
                if kind == NLMSG_ERROR {
                    match error_code(body)? {
                        0 => changes = changes.saturating_sub(1),
                        errno => return Err(io::Error::from_raw_os_error(errno)),
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Receives one datagram and gives each message in it to `accept`.
    fn receive(&self, mut accept: impl FnMut(u16, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = vec![0u8; 64 * 1024];
        let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
        while rest.len() >= HEADER {
            let length = u32::from_ne_bytes(rest[0..4].try_into().map_err(|_| short())?) as usize;
            let kind = u16::from_ne_bytes(rest[4..6].try_into().map_err(|_| short())?);
            accept(kind, rest.get(HEADER..length).ok_or_else(short)?)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(())
    }
}

fn error_code(body: &[u8]) -> io::Result<i32> {
    body.get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(|bytes| -i32::from_ne_bytes(bytes))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The first attribute: its kind, its value, and what follows it.
pub fn next_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
    let value = bytes.get(4..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    Some((kind, value, next))
}

// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;
/// A change whose success is told too.
pub const CHANGE: u16 = NLM_F_REQUEST | NLM_F_ACK;
const NLA_F_NESTED: u16 = 0x8000;

/// nf_tables (linux/netfilter/nfnetlink.h).
pub const SUBSYSTEM: u16 = 10;
