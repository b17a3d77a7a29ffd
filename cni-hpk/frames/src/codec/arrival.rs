//! From received memory to frames in a batch: the datagrams that UDP_GRO
//! joined are taken apart, judged and given to the joiner.

use std::net::SocketAddrV4;

use super::headers::{ETHERNET, Version, ip_version, u16_at};
use super::headers::{IPV6, V4_LENGTH, V6_LENGTH};
use super::join::{Joiner, Origin, Piece};
use super::table::{Refusal, Table, VXLAN};

/// What one call of recvmsg(2) gave.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub from: SocketAddrV4,
    /// Where its bytes are.
    pub bytes: Piece,
    /// Length of each datagram in it but the last, if it has several, bytes.
    pub datagram: Option<u16>,
}

/// Gives the message's frames to `joiner`; calls `refused` for each that isn't
/// taken. Returns how many were. Stops short, at the byte it returns, when the
/// joiner is full.
pub fn take(
    table: &Table,
    message: &Message,
    memory: &mut [u8],
    joiner: &mut Joiner,
    mut refused: impl FnMut(Refusal),
) -> Taken {
    let Piece { mut start, end } = message.bytes;
    let mut taken = Taken::default();
    let whole = message
        .datagram
        .filter(|_| is_one_frame(&memory[start..end]));
    let length = match (message.datagram, whole) {
        (Some(length), None) => usize::from(length).max(1),
        _ => usize::MAX,
    };
    while start < end {
        if joiner.is_full() {
            taken.rest = Some(Piece { start, end });
            break;
        }
        let stop = start.saturating_add(length).min(end);
        match table.incoming(message.from, &memory[start..stop]) {
            Ok(kernel) => {
                let origin = Origin {
                    kernel,
                    datagram: whole,
                };
                let frame = Piece {
                    start: start + VXLAN,
                    end: stop,
                };
                match joiner.push(memory, frame, origin) {
                    true => {
                        taken.frames += 1;
                        taken.bytes += stop - frame.start;
                    }
                    false => refused(Refusal::TooLong),
                }
            }
            Err(refusal) => refused(refusal),
        }
        start = stop;
    }
    taken
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    pub frames: usize,
    /// Of frames, without their outer headers.
    pub bytes: usize,
    /// What is left of the message for the next batch.
    pub rest: Option<Piece>,
}

/// Whether a message that says it has several datagrams is one frame with a
/// UDP packet not cut yet: that of a kernel's VXLAN device behind virtual
/// links, which let it through and tell the size of its inner datagrams.
fn is_one_frame(message: &[u8]) -> bool {
    let Some(frame) = message.get(VXLAN..) else {
        return false;
    };
    let end = match ip_version(frame) {
        Some(Version::V4) => u16_at(frame, V4_LENGTH).map(|length| ETHERNET + usize::from(length)),
        Some(Version::V6) => {
            u16_at(frame, V6_LENGTH).map(|length| ETHERNET + IPV6 + usize::from(length))
        }
        None => None,
    };
    end == Some(frame.len())
}
