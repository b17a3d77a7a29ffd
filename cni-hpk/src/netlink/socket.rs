//! A netlink socket of one network namespace. The kernel does what a message
//! asks for before send(2) returns, so there is nothing to wait for, and
//! messages sent together cost one system call.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Length of `struct nlmsghdr`, bytes.
pub const HEADER: usize = 16;
/// What the kernel puts into one datagram at most, bytes.
const LONGEST: usize = 32 << 10;

/// One message of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    pub kind: u16,
    pub flags: u16,
    /// Of the message it answers.
    pub sequence: u32,
    /// With its header.
    pub whole: &'a [u8],
}

impl<'a> Answer<'a> {
    pub fn body(&self) -> &'a [u8] {
        self.whole.get(HEADER..).unwrap_or_default()
    }

    /// An error's number; 0 for a success that was asked to be told. `None`
    /// for another kind of message.
    pub fn error(&self) -> Option<i32> {
        let code: [u8; 4] = *self.body().first_chunk()?;
        (self.kind == NLMSG_ERROR).then(|| i32::from_ne_bytes(code).saturating_neg())
    }

    /// Whether no further message answers the same question.
    pub fn is_last(&self) -> bool {
        self.kind == NLMSG_DONE || self.kind == NLMSG_ERROR || self.flags & NLM_F_MULTI == 0
    }
}

#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one in the calling thread's network namespace.
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        let buffer = vec![0; LONGEST];
        Ok(Self { socket, buffer })
    }

    /// Sends messages that stand one after the other.
    pub fn send(&self, messages: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), messages, MsgFlags::empty())?;
        Ok(())
    }

    /// Receives one datagram and gives each message in it to `accept`.
    pub fn receive(
        &mut self,
        mut accept: impl FnMut(Answer<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let fd = self.socket.as_raw_fd();
        let length = recv(fd, &mut self.buffer, MsgFlags::MSG_TRUNC)?;
        let mut rest = self.buffer.get(..length).ok_or_else(short)?;
        while let Some(header) = rest.first_chunk::<HEADER>() {
            let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *header;
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            accept(Answer {
                kind: u16::from_ne_bytes([e, f]),
                flags: u16::from_ne_bytes([g, h]),
                sequence: u32::from_ne_bytes([i, j, k, l]),
                whole: rest
                    .get(..length)
                    .filter(|it| it.len() >= HEADER)
                    .ok_or_else(short)?,
            })?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(())
    }
}

// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
pub const NLMSG_DONE: u16 = 3;
pub const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_MULTI: u16 = 0x2;
pub const NLM_F_ACK: u16 = 0x4;
pub const NLM_F_REPLACE: u16 = 0x100;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;
