//! What the targets of the overlay share: a table with one peer, frames that
//! this peer could have sent, and what must hold of all that is written to
//! the TAP.

use std::net::SocketAddrV4;

use cni_hpk::relay::wire::check_frame;
use hpk_frames::codec::arrival::{Message, take};
use hpk_frames::codec::headers::{ETHERNET, Layout, Protocol};
use hpk_frames::codec::join::{Joiner, Piece};
use hpk_frames::codec::table::{Mac, Peer, Table};

pub const OWN: Mac = [2, 0, 0, 0, 0, 1];
pub const PEER: Mac = [2, 0, 0, 0, 0, 9];

/// MTUs of real devices, bytes.
pub const MTUS: [u32; 4] = [576, 1450, 8950, 65_000];

pub fn from() -> SocketAddrV4 {
    SocketAddrV4::new([192, 0, 2, 9].into(), 9999)
}

/// One peer, whose pods may have any address.
pub fn table(kernel: bool) -> Table {
    let peer = Peer {
        mac: PEER,
        address: from(),
        kernel,
        subnet: "0.0.0.0/0".parse().expect("a network"),
        subnet6: "::/0".parse().ok(),
    };
    Table::new(77, OWN, vec![peer])
}

/// Numbers and bytes from the front of an input; zeros behind its end.
#[derive(Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    pub fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes.to_vec()
    }
}

/// Makes the frame the peer's, for us.
pub fn address(frame: &mut [u8]) {
    if let Some(place) = frame.get_mut(..12) {
        place.copy_from_slice(&[OWN, PEER].concat());
    }
}

/// Puts in the right checksum, or only the pseudo header's, where the frame
/// has a place for one.
pub fn sum(frame: &mut [u8], partial: bool) {
    let Some(layout) = Layout::parse(frame) else {
        return;
    };
    let field = layout.checksum()..layout.checksum() + 2;
    let pseudo = layout.pseudo(frame);
    frame[field.clone()].fill(0);
    let checksum = match partial {
        true => pseudo.fold(),
        false => pseudo.with(&frame[layout.transport..layout.end]).finish(),
    };
    // Zero would be none.
    let checksum = match (layout.protocol, checksum) {
        (Protocol::Udp, [0, 0]) => [0xff, 0xff],
        (_, other) => other,
    };
    frame[field].copy_from_slice(&checksum);
}

/// What is written to the TAP of these messages in one batch.
pub fn receive(
    kernel: bool,
    mtu: u32,
    udp: bool,
    messages: &[(Vec<u8>, Option<u16>)],
) -> Vec<Vec<u8>> {
    let table = table(kernel);
    let mut joiner = Joiner::new(mtu, udp);
    let mut memory: Vec<u8> = messages.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
    let mut start = 0;
    let mut written = Vec::new();
    for (bytes, datagram) in messages {
        let end = start + bytes.len();
        let mut message = Message {
            from: from(),
            bytes: Piece { start, end },
            datagram: *datagram,
        };
        while let Some(rest) =
            take(&table, &message, &mut memory, &mut joiner, |_| {}).rest
        {
            write(&mut joiner, &mut memory, mtu, &mut written);
            message.bytes = rest;
        }
        start = end;
    }
    write(&mut joiner, &mut memory, mtu, &mut written);
    written
}

/// Finishes a batch. Whatever is in it fits the device, or is cut by it into
/// what does; and its header points into it.
fn write(joiner: &mut Joiner, memory: &mut [u8], mtu: u32, written: &mut Vec<Vec<u8>>) {
    joiner.finish(memory);
    let longest = ETHERNET + mtu as usize;
    for run in joiner.runs() {
        let pieces = joiner.pieces(run);
        let frame: Vec<u8> = pieces.flat_map(|piece| memory[piece.start..piece.end].to_vec()).collect();
        let header = run.header();
        match header.segments {
            Some(segments) => {
                let segment = usize::from(segments.header) + usize::from(segments.size);
                assert!(segment <= longest, "segments of {segment} bytes");
                assert!(header.checksum.is_some());
                assert!(frame.len() <= ETHERNET + 65535, "{} bytes", frame.len());
            }
            None => assert!(frame.len() <= longest, "{} bytes", frame.len()),
        }
        let message = [&header.write()[..], &frame].concat();
        check_frame(&message).expect("a frame that a device takes");
        written.push(frame);
    }
    joiner.clear();
}
