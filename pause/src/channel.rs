//! The socket between shim and `hpk-pause`: SOCK_SEQPACKET, the shim's end with SO_PASSCRED.
//!
//! # Expected flow
//!
//! | from | message | means |
//! |---|---|---|
//! | init | [`HELLO`] | I run, and no longer die with Apptainer. (`enter` does not send it.) |
//! | shim | [`CONFIG`] + descriptors, [`MORE`] + descriptors … | first descriptor: file with the [`crate::wire::Config`] |
//! | both | [`WARNING`] text | something asked for was not done; the container starts all the same |
//! | both | [`TERMINAL`] + descriptor | master of the terminal |
//! | both | [`READY`] + descriptor | all is set, the program was found. The sender's pid is the program's; the descriptor is a pipe that ends with this program |
//! | shim | [`GO`], with or without a descriptor | exec it; the descriptor is its stdin |
//! | both | [`FAILED`] text | it can't be; the process ends |
//!
//! The pipe's end after GO means that the exec went well, if nothing else was said before it. (The
//! socket's end can't tell: an Apptainer that is kept has it open.) The sender's credentials, translated to the shim's PID namespace, come with
//! every message: that is how the shim knows the container's pid.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, sendmsg,
};

use crate::sys;

pub const HELLO: u8 = b'H';
pub const CONFIG: u8 = b'C';
pub const MORE: u8 = b'M';
pub const WARNING: u8 = b'W';
pub const TERMINAL: u8 = b'T';
pub const READY: u8 = b'R';
pub const GO: u8 = b'G';
pub const FAILED: u8 = b'F';

/// Descriptors a message may carry (the kernel's SCM_MAX_FD is 253).
pub const FDS_PER_MESSAGE: usize = 200;
/// Bytes of a message's text; more is cut off.
pub const TEXT_LIMIT: usize = 4000;

/// One message.
#[derive(Debug)]
pub struct Message {
    pub kind: u8,
    /// For CONFIG, four bytes: how many descriptors come in all. Else text.
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    /// The sender, where the socket passes credentials.
    pub pid: Option<i32>,
}

impl Message {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one message.
pub fn send(
    socket: BorrowedFd<'_>,
    kind: u8,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = &body[..body.len().min(TEXT_LIMIT)];
    let parts = [
        IoSlice::new(std::slice::from_ref(&kind)),
        IoSlice::new(body),
    ];
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &parts,
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one message; `None` at end-of-file.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Message>> {
    let mut bytes = vec![0u8; TEXT_LIMIT + 1];
    let mut control = nix::cmsg_space!([RawFd; FDS_PER_MESSAGE], UnixCredentials);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let (mut fds, mut pid) = (Vec::new(), None);
    for message in received.cmsgs()? {
        match message {
            ControlMessageOwned::ScmRights(raw) => {
                for fd in raw {
                    fds.push(sys::inherited(fd)?);
                }
            }
            ControlMessageOwned::ScmCredentials(credentials) => pid = Some(credentials.pid()),
            _ => {}
        }
    }
    let n = received.bytes;
    if n == 0 {
        return Ok(None);
    }
    Ok(Some(Message {
        kind: bytes[0],
        body: bytes[1..n].to_vec(),
        fds,
        pid,
    }))
}

/// What to send for a configuration: each element is one message's kind, body and share of `fds`.
pub fn config_messages<'a>(
    fds: &'a [BorrowedFd<'a>],
) -> impl Iterator<Item = (u8, Vec<u8>, &'a [BorrowedFd<'a>])> {
    let total = (fds.len() as u32).to_le_bytes().to_vec();
    fds.chunks(FDS_PER_MESSAGE)
        .enumerate()
        .map(move |(n, chunk)| {
            if n == 0 {
                (CONFIG, total.clone(), chunk)
            } else {
                (MORE, Vec::new(), chunk)
            }
        })
}
