//! The shim's end of the socket to `hpk-pause init` or `enter` (see `hpk_pause::channel`).
#![allow(unsafe_code)]

use std::{
    io::{self, Seek, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use hpk_pause::{channel as wire_channel, wire};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt},
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::error::Error;

/// The set-up inside takes milliseconds; a mount source on a hung NFS server takes for ever.
const SETUP_LIMIT: Duration = Duration::from_secs(60);
/// Apptainer itself, on a cold and loaded shared file system.
const HELLO_LIMIT: Duration = Duration::from_secs(120);

/// The shim's end.
#[derive(Debug)]
pub struct Channel {
    socket: AsyncFd<OwnedFd>,
    /// Ends when `hpk-pause` has become the user's program, or has failed to.
    until_exec: Option<AsyncFd<OwnedFd>>,
}

/// The set-up's outcome.
#[derive(Debug)]
pub struct Ready {
    pub pid: i32,
    pub terminal: Option<OwnedFd>,
    pub warnings: Vec<String>,
}

/// The two ends: the shim's, and the one `hpk-pause` inherits (close-on-exec until then).
pub fn pair() -> Result<(Channel, OwnedFd), Error> {
    let make = || -> io::Result<(OwnedFd, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        setsockopt(&ours, sockopt::PassCred, &true)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((ours, theirs))
    };
    let (ours, theirs) = make().map_err(Error::system("make a socket pair"))?;
    let channel = Channel {
        socket: watch(ours)?,
        until_exec: None,
    };
    Ok((channel, theirs))
}

fn watch(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, Error> {
    // SAFETY: the AsyncFd owns the descriptor: it stays open and the same while it is registered.
    unsafe { AsyncFd::register(fd) }
        .map_err(io::Error::from)
        .map_err(Error::system("watch a descriptor"))
}

impl Channel {
    async fn receive(
        &self,
        limit: Duration,
        what: &'static str,
    ) -> Result<Option<wire_channel::Message>, Error> {
        let receiving = self
            .socket
            .async_io(Interest::READABLE, |fd| wire_channel::receive(fd.as_fd()));
        match tokio::time::timeout(limit, receiving).await {
            Ok(Ok(message)) => Ok(message),
            // The other end closed with something of ours unread: as good as end-of-file.
            Ok(Err(e)) if e.raw_os_error() == Some(libc::ECONNRESET) => Ok(None),
            Ok(Err(e)) => Err(Error::system("listen to hpk-pause")(e)),
            Err(_) => Err(Error::TimedOut {
                what,
                seconds: limit.as_secs(),
            }),
        }
    }

    async fn send(&self, kind: u8, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.socket
            .async_io(Interest::WRITABLE, |fd| {
                wire_channel::send(fd.as_fd(), kind, body, fds)
            })
            .await
            .map_err(Error::system("talk to hpk-pause"))
    }

    /// Waits for HELLO: the pid of the container's first process, or `None` if it never came.
    pub async fn hello(&self) -> Result<Option<i32>, Error> {
        let message = self.receive(HELLO_LIMIT, "apptainer").await?;
        Ok(message
            .filter(|m| m.kind == wire_channel::HELLO)
            .and_then(|m| m.pid))
    }

    /// Sends the configuration with its descriptors (`fds[0]` of the configuration is its own file).
    pub async fn configure(
        &self,
        config: &wire::Config,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let file =
            config_file(&wire::encode(config)).map_err(Error::system("write the configuration"))?;
        let all: Vec<BorrowedFd<'_>> = std::iter::once(file.as_fd())
            .chain(fds.iter().copied())
            .collect();
        for (kind, body, share) in wire_channel::config_messages(&all) {
            self.send(kind, &body, share).await?;
        }
        Ok(())
    }

    /// Waits until the process is set up; nothing if it has ended.
    pub async fn ready(&mut self) -> Result<Option<Ready>, Error> {
        let (mut terminal, mut warnings) = (None, Vec::new());
        loop {
            let Some(mut message) = self.receive(SETUP_LIMIT, "the container's set-up").await?
            else {
                return Ok(None);
            };
            match message.kind {
                wire_channel::WARNING => warnings.push(message.text()),
                wire_channel::TERMINAL => terminal = message.fds.pop(),
                wire_channel::READY => {
                    let pid = message.pid.filter(|&pid| pid > 0).ok_or_else(|| {
                        Error::Container("the container's pid is not visible here".into())
                    })?;
                    self.until_exec = message.fds.pop().map(watch).transpose()?;
                    return Ok(Some(Ready {
                        pid,
                        terminal,
                        warnings,
                    }));
                }
                _ => return Err(Error::Container(message.text())),
            }
        }
    }

    /// Lets the process become the user's program, with this stdin if any; returns when it has.
    pub async fn go(&self, stdin: Option<OwnedFd>) -> Result<(), Error> {
        let fds: Vec<BorrowedFd<'_>> = stdin.iter().map(AsFd::as_fd).collect();
        // If it has been killed meanwhile, its end is told as such, not as a failed start.
        if let Err(e) = self.send(wire_channel::GO, &[], &fds).await {
            log::debug!("start: {e}");
            return Ok(());
        }
        drop(stdin);
        let Some(until_exec) = &self.until_exec else {
            return Err(Error::Container("hpk-pause is of another build".into()));
        };
        let end = until_exec.async_io(Interest::READABLE, |fd| {
            Ok(nix::unistd::read(fd, &mut [0])?)
        });
        tokio::time::timeout(SETUP_LIMIT, end)
            .await
            .map_err(|_| Error::TimedOut {
                what: "the container's program",
                seconds: SETUP_LIMIT.as_secs(),
            })?
            .map_err(Error::system("listen to hpk-pause"))?;
        // What failed was said before the end.
        match wire_channel::receive(self.socket.get_ref().as_fd()) {
            Ok(Some(message)) => Err(Error::Container(message.text())),
            _ => Ok(()),
        }
    }
}

/// The configuration holds the environment: it lives in memory only.
fn config_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(memfd_create(c"hpk-config", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}
