//! The relay's UNIX socket: message boundaries kept, descriptors passed, the
//! other side's user checked.

use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt,
    listen, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::sys::time::TimeVal;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Name of the socket in the relay's folder.
pub const SOCKET: &str = "relay.sock";
/// Held by the daemon that listens.
pub const LOCK: &str = "lock";
/// Asked for; the kernel gives at most wmem_max, without telling.
const BUFFER: usize = 4 << 20;
/// How long whoever connects may take to say what it wants.
const FIRST_WORD: TimeVal = TimeVal::new(10, 0);
/// Descriptors a message may come with.
const DESCRIPTORS: usize = 2;

/// The other side isn't ours.
#[derive(Debug, thiserror::Error)]
#[error("the other side of the socket is user {theirs}, not {ours}")]
pub struct Foreign {
    pub theirs: u32,
    pub ours: u32,
}

/// The folder of the socket, for us alone.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

/// Listens in `folder`; a socket left there by a dead daemon goes. The caller
/// holds the folder's lock and has one thread: the mask of new files is the
/// process's.
pub fn listen_in(folder: &Path) -> io::Result<OwnedFd> {
    let (_held, path) = short(folder)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = new_socket(SockFlag::SOCK_CLOEXEC)?;
    // 0600 from birth.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = bind(listener.as_raw_fd(), &UnixAddr::new(&path)?);
    umask(before);
    bound?;
    listen(&listener, Backlog::new(64)?)?;
    Ok(listener)
}

/// Removes the socket of a daemon that was killed, if none has taken its place.
pub fn sweep(folder: &Path) -> io::Result<()> {
    let lock = match File::options().append(true).open(folder.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        lock => lock?,
    };
    match lock.try_lock() {
        Ok(()) => match fs::remove_file(folder.join(SOCKET)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        Err(fs::TryLockError::WouldBlock) => Ok(()),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// A connection, its other side checked.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Connects to the daemon that listens in `folder`.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let (_held, path) = short(folder)?;
        let socket = new_socket(SockFlag::SOCK_CLOEXEC)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
        Self::checked(socket)
    }

    /// The next one who connects to `listener`.
    pub fn accept(listener: &OwnedFd) -> io::Result<Self> {
        use std::os::fd::FromRawFd as _;
        let raw = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: accept4 has just given this descriptor to us alone.
        #[allow(unsafe_code)]
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        // One that says nothing doesn't hold a thread for ever.
        setsockopt(&socket, sockopt::ReceiveTimeout, &FIRST_WORD)?;
        Self::checked(socket)
    }

    fn checked(socket: OwnedFd) -> io::Result<Self> {
        let ours = nix::unistd::geteuid().as_raw();
        let theirs = getsockopt(&socket, sockopt::PeerCredentials)?.uid();
        if theirs != ours {
            let foreign = Foreign { theirs, ours };
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, foreign));
        }
        // Less than asked for is slower, not wrong.
        let _ = setsockopt(&socket, sockopt::SndBuf, &BUFFER);
        Ok(Self { socket })
    }

    /// The same connection once more.
    pub fn try_clone(&self) -> io::Result<Self> {
        let socket = self.socket.try_clone()?;
        Ok(Self { socket })
    }

    /// Sends a message whole, with descriptors.
    pub fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space =
            [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let iov = [IoSlice::new(message)];
        rustix::net::sendmsg(&self.socket, &iov, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Receives a message and the descriptors that came with it. No bytes: the
    /// other side has gone.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut space =
            [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(buffer)];
        let message = rustix::net::recvmsg(
            &self.socket,
            &mut iov,
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut descriptors = Vec::new();
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = part {
                descriptors.extend(received);
            }
        }
        Ok((message.bytes, descriptors))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn new_socket(flags: SockFlag) -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

/// The socket's path by its folder's descriptor: a socket's own path has room
/// for 107 bytes only.
fn short(folder: &Path) -> io::Result<(File, PathBuf)> {
    let held = File::open(folder)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", held.as_raw_fd()));
    Ok((held, path))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_descriptor_goes_over_the_socket_and_the_socket_is_ours_alone() {
        let parent = std::env::temp_dir().join(format!("hpk-relay-{}", std::process::id()));
        // Longer than a socket's path may be.
        let folder = parent.join("f".repeat(120));
        make_folder(&folder).unwrap();
        let listener = listen_in(&folder).unwrap();
        let mode = fs::metadata(folder.join(SOCKET)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let client = Connection::open(&folder).unwrap();
        let server = Connection::accept(&listener).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        client.send(b"hello", &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut buffer = [0; 64];
        let (length, descriptors) = server.receive(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], descriptors.len()), (&b"hello"[..], 1));
        drop(descriptors);
        assert_eq!(reader.read(&mut buffer).unwrap(), 0, "it was closed");
        drop(client);
        assert_eq!(server.receive(&mut buffer).unwrap().0, 0);
        fs::remove_dir_all(&parent).unwrap();
    }
}
