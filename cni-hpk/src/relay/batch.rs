//! Many frames per system call: sendmmsg(2) and recvmmsg(2) over memory laid
//! out once.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;

use nix::errno::Errno;

use super::wire::FRAME;

/// Frames in a batch. More is no faster: of super-frames a socket's buffer
/// holds fewer, and small ones don't come so many at once.
const SLOTS: usize = 32;
/// A frame, and one byte more by which one too long is seen.
const SLOT: usize = (FRAME + 1).next_multiple_of(16);

/// Room for [`SLOTS`] frames, used from its front.
pub struct Batch {
    memory: Vec<u8>,
    /// Points into `memory`, whose heap block is never moved or resized.
    vectors: Vec<libc::iovec>,
    /// Points into `vectors`, likewise.
    headers: Vec<libc::mmsghdr>,
    /// Slots in use: `sent..filled`.
    filled: usize,
    sent: usize,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch")
            .field("filled", &self.filled)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    pub fn new() -> Self {
        let mut memory = vec![0_u8; SLOTS * SLOT];
        let mut vectors: Vec<libc::iovec> = memory
            .chunks_exact_mut(SLOT)
            .map(|slot| libc::iovec {
                iov_base: slot.as_mut_ptr().cast(),
                iov_len: SLOT,
            })
            .collect();
        let headers = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: all-zero bytes are a valid mmsghdr: null pointers, no lengths.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = ptr::from_mut(vector);
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        Self {
            memory,
            vectors,
            headers,
            filled: 0,
            sent: 0,
        }
    }

    pub fn clear(&mut self) {
        (self.filled, self.sent) = (0, 0);
    }

    pub fn is_empty(&self) -> bool {
        self.sent == self.filled
    }

    /// The next slot to fill, of [`FRAME`] bytes; none if all are full.
    pub fn free_slot(&mut self) -> Option<&mut [u8]> {
        let start = self.filled * SLOT;
        self.memory.get_mut(start..start + FRAME)
    }

    /// The slot last got has a message of this length.
    pub fn fill(&mut self, length: usize) {
        self.vectors[self.filled].iov_len = length.min(FRAME);
        self.filled += 1;
    }

    /// Sends what isn't sent yet, or as much as the socket takes.
    ///
    /// # Errors
    /// `EAGAIN` where it takes nothing now.
    pub fn send(&mut self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let waiting = &mut self.headers[self.sent..self.filled];
        // SAFETY: the headers and what they point to are alive and nobody else's during the call;
        // the count is theirs.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                waiting.as_mut_ptr(),
                waiting.len() as libc::c_uint,
                (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
            )
        };
        self.sent += usize::try_from(checked(sent)?).unwrap_or(0);
        Ok(())
    }

    /// Receives as many messages as there are, at most all slots; at least one.
    ///
    /// # Errors
    /// `EAGAIN` where there is none.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        self.clear();
        for vector in &mut self.vectors {
            vector.iov_len = SLOT;
        }
        // SAFETY: as in `send`; each vector is as long as its slot.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        self.filled = usize::try_from(checked(received)?).unwrap_or(0);
        Ok(())
    }

    /// What was received, in order; an empty one is the other side's end.
    pub fn received(&self) -> impl Iterator<Item = &[u8]> {
        let lengths = self.headers[..self.filled]
            .iter()
            .map(|header| usize::try_from(header.msg_len).unwrap_or(0));
        let slots = self.memory.chunks_exact(SLOT);
        slots
            .zip(lengths)
            .map(|(slot, length)| &slot[..length.min(SLOT)])
    }
}

fn checked(result: libc::c_int) -> Result<libc::c_int, Errno> {
    match result {
        -1 => Err(Errno::last()),
        result => Ok(result),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC;
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
    }

    fn message(number: usize) -> Vec<u8> {
        vec![u8::try_from(number % 251).unwrap(); 24 + number * 1999]
    }

    #[test]
    fn what_is_sent_over_a_full_socket_arrives_whole_and_in_order() {
        let (ours, theirs) = pair();
        let mut batch = Batch::new();
        let mut slots = 0;
        while let Some(slot) = batch.free_slot() {
            let message = message(slots);
            slot[..message.len()].copy_from_slice(&message);
            batch.fill(message.len());
            slots += 1;
        }
        assert_eq!(slots, SLOTS);
        let mut receiver = Batch::new();
        let (mut number, mut full) = (0, 0);
        while number < SLOTS {
            while !batch.is_empty() {
                match batch.send(ours.as_fd()) {
                    Err(Errno::EAGAIN) => {
                        full += 1;
                        break;
                    }
                    sent => sent.unwrap(),
                }
            }
            receiver.receive(theirs.as_fd()).unwrap();
            for received in receiver.received() {
                assert_eq!(received, message(number), "number {number}");
                number += 1;
            }
        }
        assert!(full > 0, "the socket was never full");
        assert_eq!(receiver.receive(theirs.as_fd()), Err(Errno::EAGAIN));
        drop(ours);
        receiver.receive(theirs.as_fd()).unwrap();
        assert!(receiver.received().all(<[u8]>::is_empty));
    }

    #[test]
    fn a_message_longer_than_any_frame_is_seen_to_be_so() {
        let (ours, theirs) = pair();
        let long = vec![1; SLOT + 100];
        nix::sys::socket::send(ours.as_raw_fd(), &long, nix::sys::socket::MsgFlags::empty())
            .unwrap();
        let mut batch = Batch::new();
        batch.receive(theirs.as_fd()).unwrap();
        let lengths: Vec<usize> = batch.received().map(<[u8]>::len).collect();
        assert_eq!(lengths, [SLOT]);
    }
}
