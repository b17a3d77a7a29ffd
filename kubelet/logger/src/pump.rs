//! The inherited descriptors, and the loop that empties them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::lines::{Splitter, Stream};
use crate::sink::Sink;

const STDOUT: RawFd = 3;
const STDERR: RawFd = 4;
const READY: RawFd = 5;

/// A pipe's capacity: one read empties it.
const BUFFER: usize = 64 * 1024;

/// One stream of the container, until it ends.
#[derive(Debug)]
pub struct Source {
    file: File,
    splitter: Splitter,
}

/// The container's streams, those that there are.
pub fn inherited() -> Vec<Source> {
    [(STDOUT, Stream::Stdout), (STDERR, Stream::Stderr)]
        .into_iter()
        .filter_map(|(fd, stream)| {
            Some(Source {
                file: File::from(take(fd)?),
                splitter: Splitter::new(stream),
            })
        })
        .collect()
}

/// Closes the pipe that the shim waits at.
///
/// # Errors
/// The shim gave none: nobody waits.
pub fn announce() -> io::Result<()> {
    match take(READY) {
        Some(fd) => {
            drop(fd);
            Ok(())
        }
        None => Err(Errno::EBADF.into()),
    }
}

#[allow(unsafe_code)]
fn take(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD changes nothing, whatever the number means.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the descriptor is open (just seen), this process has one thread, and descriptors 3 to
    // 5 are the protocol's: nothing in this process owns them, and each is taken once.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads until every stream has ended. `partial_after`: see [`crate::config::Config`].
pub fn run(mut sources: Vec<Source>, partial_after: u16, sink: &mut Sink) {
    let mut buffer = vec![0; BUFFER];
    while !sources.is_empty() {
        let is_within = sources.iter().any(|source| source.splitter.is_within());
        let limit = if partial_after > 0 && is_within {
            PollTimeout::from(partial_after)
        } else {
            PollTimeout::NONE
        };
        match wait(&sources, limit) {
            Some(ready) => {
                let mut ready = ready.into_iter();
                sources.retain_mut(|source| {
                    !ready.next().unwrap_or(false) || read_some(source, &mut buffer, sink)
                });
            }
            None => {
                for source in &mut sources {
                    source.splitter.end(sink);
                }
            }
        }
        sink.flush();
    }
    sink.finish();
}

/// Which sources have something to read; `None` after silence.
fn wait(sources: &[Source], limit: PollTimeout) -> Option<Vec<bool>> {
    let mut fds: Vec<PollFd<'_>> = sources
        .iter()
        .map(|source| PollFd::new(source.file.as_fd(), PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, limit) {
        Ok(0) => return None,
        Ok(_) => {}
        // Nothing is ready, and nothing was silent either.
        Err(Errno::EINTR) => return Some(vec![false; sources.len()]),
        Err(error) => {
            // Only a lack of kernel memory is left; reading in turn still gets everything.
            eprintln!("hpk-logger: can't wait for output: {error}");
            return Some(vec![true; sources.len()]);
        }
    }
    let is_ready = |fd: &PollFd<'_>| fd.revents().is_none_or(|events| !events.is_empty());
    Some(fds.iter().map(is_ready).collect())
}

/// One read; false once the stream has ended.
fn read_some(source: &mut Source, buffer: &mut [u8], sink: &mut Sink) -> bool {
    match source.file.read(buffer) {
        Ok(0) => {}
        Ok(count) => {
            source.splitter.feed(&buffer[..count], sink);
            return true;
        }
        Err(error) => match error.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => return true,
            // EIO: the other side of a terminal is gone.
            _ => eprintln!("hpk-logger: a stream ended early: {error}"),
        },
    }
    source.splitter.end(sink);
    false
}
