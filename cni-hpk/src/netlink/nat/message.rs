//! Messages of nfnetlink, and their way through its socket.

use std::io;

use nix::sys::socket::SockProtocol;

use crate::netlink::socket::{HEADER, NLM_F_ACK, NLM_F_REQUEST, NLMSG_DONE, Socket};

/// A netlink message, or the inside of a nested attribute, being written.
#[derive(Debug)]
pub struct Message(Vec<u8>);

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
        message.0[HEADER + 2..HEADER + 4].copy_from_slice(&SUBSYSTEM.to_be_bytes());
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
pub struct NatSocket(Socket);

impl NatSocket {
    pub fn open() -> io::Result<Self> {
        Socket::open(SockProtocol::NetlinkNetFilter).map(Self)
    }

    /// Sends a question and gives each answer's kind and body to `accept`.
    /// What isn't there has no answers.
    pub fn ask(&mut self, message: Message, mut accept: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.0.send(&message.finish())?;
        let mut done = false;
        while !done {
            self.0.receive(|answer| {
                match answer.error() {
                    None if answer.kind == NLMSG_DONE => done = true,
                    None => accept(answer.kind, answer.body()),
                    Some(0 | libc::ENOENT) => done = true,
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Sends a batch and waits until the kernel has said yes to each of its
    /// `changes`, or no to one.
    pub fn transact(&mut self, batch: &[u8], mut changes: usize) -> io::Result<()> {
        self.0.send(batch)?;
        while changes > 0 {
            self.0.receive(|answer| match answer.error() {
                None => Ok(()),
                Some(0) => {
                    changes = changes.saturating_sub(1);
                    Ok(())
                }
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            })?;
        }
        Ok(())
    }
}

/// The first attribute: its kind, its value, and what follows it.
pub fn next_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
    let value = bytes.get(4..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    Some((kind, value, next))
}

/// A change whose success is told too.
pub const CHANGE: u16 = NLM_F_REQUEST | NLM_F_ACK;
const NLA_F_NESTED: u16 = 0x8000;

/// nf_tables (linux/netfilter/nfnetlink.h).
pub const SUBSYSTEM: u16 = 10;
