//! Which datagrams go into one message to the kernel: those that follow one
//! another to the same peer, all as long as the first but for the last
//! (UDP_SEGMENT, udp(7)).

use std::net::SocketAddrV4;
use std::ops::Range;

use super::join::Piece;

/// Datagrams of one message (the kernel's UDP_MAX_SEGMENTS, before 6.9).
const LONGEST: u16 = 64;
/// Of one message, bytes: what one UDP datagram over IPv4 holds.
const LARGEST: usize = 65507;
/// Messages of one batch.
pub const MESSAGES: usize = 64;
/// Pieces of one batch; a message has at most two a datagram.
pub const PIECES: usize = 2048;

/// One message: one datagram, or several that the kernel takes apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub to: SocketAddrV4,
    /// Its bytes, among the batch's pieces.
    pub pieces: Range<usize>,
    /// How many datagrams.
    pub count: u16,
    /// Of each but the last, bytes.
    pub datagram: usize,
    /// Of all, bytes.
    pub length: usize,
    /// Takes no more.
    closed: bool,
}

/// What is sent with one call. Memory is taken once, by [`Batch::new`].
#[derive(Debug)]
pub struct Batch {
    pieces: Vec<Piece>,
    messages: Vec<Message>,
    /// Whether messages of several datagrams are made.
    several: bool,
}

impl Batch {
    pub fn new(several: bool) -> Self {
        Self {
            pieces: Vec::with_capacity(PIECES),
            messages: Vec::with_capacity(MESSAGES),
            several,
        }
    }

    /// From now on a message for each datagram.
    pub fn stop_joining(&mut self) {
        self.several = false;
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether the batch has to be sent before the next datagram.
    pub fn is_full(&self) -> bool {
        self.messages.len() == MESSAGES || self.pieces.len() + 2 > PIECES
    }

    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub fn clear(&mut self) {
        self.pieces.clear();
        self.messages.clear();
    }

    /// Adds a datagram of one or two pieces.
    pub fn push(&mut self, to: SocketAddrV4, head: Piece, tail: Option<Piece>) {
        let size = |piece: Piece| piece.end - piece.start;
        let length = size(head) + tail.map_or(0, size);
        let at = self.pieces.len();
        self.pieces.push(head);
        self.pieces.extend(tail);
        let end = self.pieces.len();
        let several = self.several;
        let grown = self.messages.last_mut().filter(|message| {
            several
                && !message.closed
                && message.to == to
                && length <= message.datagram
                && message.count < LONGEST
                && message.length + length <= LARGEST
        });
        match grown {
            Some(message) => {
                message.pieces.end = end;
                message.count += 1;
                message.length += length;
                message.closed = length < message.datagram;
            }
            None => self.messages.push(Message {
                to,
                pieces: at..end,
                count: 1,
                datagram: length,
                length,
                closed: false,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lengths: &[(u16, usize)]) -> Vec<(u16, usize)> {
        let mut batch = Batch::new(true);
        for (port, length) in lengths {
            let to = SocketAddrV4::new([192, 0, 2, 1].into(), *port);
            let piece = |start, end| Piece { start, end };
            batch.push(to, piece(0, 74), Some(piece(100, 100 + length - 74)));
        }
        let messages = batch.messages().iter();
        messages.map(|it| (it.count, it.length)).collect()
    }

    #[test]
    fn datagrams_of_one_length_and_a_shorter_last_one_make_a_message() {
        let lengths = [(1, 1500), (1, 1500), (1, 200), (1, 200), (1, 1500)];
        assert_eq!(batch(&lengths), [(3, 3200), (1, 200), (1, 1500)]);
    }

    #[test]
    fn another_peer_is_another_message() {
        assert_eq!(batch(&[(1, 100), (2, 100), (1, 100)]), [(1, 100); 3]);
    }

    #[test]
    fn a_message_holds_what_the_kernel_takes() {
        let messages = batch(&[(1, 1522); 46]);
        assert_eq!(messages, [(43, 43 * 1522), (3, 3 * 1522)]);
        let messages = batch(&[(1, 100); 65]);
        assert_eq!(messages, [(64, 6400), (1, 100)]);
    }

    #[test]
    fn without_segmentation_each_datagram_is_a_message() {
        let mut batch = Batch::new(false);
        let to = "192.0.2.1:1".parse().unwrap();
        for _ in 0..3 {
            batch.push(to, Piece { start: 0, end: 9 }, None);
        }
        assert_eq!(batch.messages().len(), 3);
        assert_eq!(batch.messages()[2].pieces, 2..3);
    }
}
