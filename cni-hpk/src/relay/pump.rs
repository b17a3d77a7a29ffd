//! Moves frames one way between a TAP and a socket. Each runs on a thread of
//! its own until it is told to stop or an end has gone.
//!
//! Frames keep their order and are never dropped for a full socket: then the
//! TAP is not read, and its sender sees a slow device. What the receiving
//! device won't take is lost and counted, as on any wire. Nothing is allocated
//! once a pump runs.

use std::fs::File;
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use hpk_frames::codec::virtio::{self, VirtioHeader};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::batch::Batch;
use super::stats::Counters;
use super::wire::check_frame;

/// Why a pump ended.
#[derive(Debug)]
pub enum End {
    /// Asked to.
    Stopped,
    /// An end failed: the device is gone, the socket closed, a peer lied.
    Failed(io::Error),
}

/// From the TAP to the socket, many frames per system call.
pub fn tap_to_socket(tap: &File, socket: impl AsFd, stop: &PipeReader, counters: &Counters) -> End {
    let mut batch = Batch::new();
    run(|| {
        batch.clear();
        while let Some(slot) = batch.free_slot() {
            match read_frame(tap, slot).map_err(End::Failed)? {
                Some(length) => {
                    count(counters, &slot[..length]);
                    batch.fill(length);
                }
                None => break,
            }
        }
        if batch.is_empty() {
            return wait(tap, PollFlags::POLLIN, stop);
        }
        while !batch.is_empty() {
            match batch.send(socket.as_fd()) {
                Ok(()) => Counters::add(&counters.batches, 1),
                Err(Errno::EAGAIN) => wait(&socket, PollFlags::POLLOUT, stop)?,
                Err(errno) => return Err(failed(errno)),
            }
        }
        is_asked_to_go_on(stop)
    })
}

/// From the socket to the TAP, many frames per system call. A frame that isn't
/// one ends it.
pub fn socket_to_tap(socket: impl AsFd, tap: &File, stop: &PipeReader, counters: &Counters) -> End {
    let mut batch = Batch::new();
    run(|| {
        match batch.receive(socket.as_fd()) {
            Ok(()) => Counters::add(&counters.batches, 1),
            Err(Errno::EAGAIN) => return wait(&socket, PollFlags::POLLIN, stop),
            Err(errno) => return Err(failed(errno)),
        }
        for frame in batch.received() {
            if frame.is_empty() {
                return Err(failed(Errno::EPIPE));
            }
            check_frame(frame)
                .map_err(|error| End::Failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
            write_frame(tap, frame, counters).map_err(End::Failed)?;
        }
        is_asked_to_go_on(stop)
    })
}

/// Takes turns until one says why it ended.
fn run(mut turn: impl FnMut() -> Result<(), End>) -> End {
    loop {
        if let Err(end) = turn() {
            return end;
        }
    }
}

fn failed(errno: Errno) -> End {
    End::Failed(errno.into())
}

/// One frame; none if there is none yet.
pub fn read_frame(mut tap: &File, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match tap.read(buffer) {
            Ok(length) => return Ok(Some(length)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(None),
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
}

/// Gives the device a frame. One that it won't take is lost.
///
/// # Errors
/// The device is gone.
pub fn write_frame(mut tap: &File, frame: &[u8], counters: &Counters) -> io::Result<()> {
    loop {
        match tap.write(frame) {
            Ok(_) => {
                count(counters, frame);
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The device is gone.
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                return Err(error);
            }
            // It is down, or the kernel is short of memory.
            Err(_) => {
                Counters::add(&counters.lost, 1);
                return Ok(());
            }
        }
    }
}

fn count(counters: &Counters, message: &[u8]) {
    let bytes = message.len().saturating_sub(virtio::LENGTH);
    Counters::add(&counters.frames, 1);
    Counters::add(&counters.bytes, u64::try_from(bytes).unwrap_or(0));
    if VirtioHeader::is_segmented(message) {
        Counters::add(&counters.super_frames, 1);
    }
}

/// Waits for `descriptor`, or for the order to stop.
fn wait(descriptor: impl AsFd, events: PollFlags, stop: &PipeReader) -> Result<(), End> {
    ready(Some((descriptor.as_fd(), events)), stop, PollTimeout::NONE)
}

fn is_asked_to_go_on(stop: &PipeReader) -> Result<(), End> {
    ready(None, stop, PollTimeout::ZERO)
}

/// The writing end of `stop` is closed, never written to.
fn ready(
    waited: Option<(BorrowedFd<'_>, PollFlags)>,
    stop: &PipeReader,
    timeout: PollTimeout,
) -> Result<(), End> {
    let order = PollFd::new(stop.as_fd(), PollFlags::empty());
    let polled = match waited {
        Some((descriptor, events)) => {
            let mut fds = [order, PollFd::new(descriptor, events)];
            poll(&mut fds, timeout).map(|_| fds[0].any())
        }
        None => {
            let mut fds = [order];
            poll(&mut fds, timeout).map(|_| fds[0].any())
        }
    };
    match polled {
        Ok(Some(true)) => Err(End::Stopped),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(failed(errno)),
    }
}
