//! From the TAP to the peers: reads what there is, cuts it, and sends it with
//! one call.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;

use tracing::{debug, warn};

use crate::codec::batch::Batch;
use crate::codec::cut::{Cut, LONGEST_HEADERS, prepare};
use crate::codec::headers::ETHERNET;
use crate::codec::join::Piece;
use crate::codec::table::{Table, VXLAN};
use crate::codec::virtio::{self, VirtioHeader};
use crate::counters::{Counters, Reason};
use crate::messages::Sender;
use crate::shared::View;
use crate::tap;

/// A frame as the TAP reads it: virtio header, Ethernet header, IP packet.
const SLOT: usize = virtio::LENGTH + ETHERNET + 65536;
/// Frames read before they are sent.
const SLOTS: usize = 64;
/// Likewise, bytes: one long frame. The receiver's socket has room for few, and
/// nobody empties it while a burst lasts that is sent on the same core.
const BYTES: usize = 48 << 10;
/// Room for the headers of a segment.
const HEADERS: usize = VXLAN + LONGEST_HEADERS;
/// Segments of a batch.
const SEGMENTS: usize = 512;

/// One direction of one queue.
#[derive(Debug)]
pub struct Sending {
    pub queue: File,
    pub socket: UdpSocket,
    pub view: View,
    pub counters: Arc<Counters>,
    /// Of the device, bytes.
    pub mtu: u32,
}

/// What is sent together. Memory is taken once.
#[derive(Debug)]
struct Outbox {
    /// The segments' headers, then the frames.
    memory: Vec<u8>,
    segments: usize,
    batch: Batch,
    sender: Sender,
    refused: bool,
    /// Of the device, bytes.
    mtu: usize,
}

impl Sending {
    /// Moves frames until the TAP fails, which is what it returns.
    pub fn run(mut self) -> io::Error {
        let mut outbox = Outbox::new(self.mtu as usize);
        // Frames to read before the first is sent: one, unless more than that
        // came the last time. A lone frame isn't kept waiting.
        let mut hurry = 1;
        loop {
            let mut read = match tap::read(&self.queue, outbox.slot(0)) {
                Ok(length) => length,
                Err(error) => return error,
            };
            let table = self.view.table();
            let (mut frames, mut bytes) = (0, 0);
            loop {
                bytes += read;
                outbox.add(table, frames, read, &self.socket, &self.counters);
                frames += 1;
                if frames == hurry {
                    outbox.flush(&self.socket, &self.counters);
                }
                if frames == SLOTS || bytes > BYTES {
                    break;
                }
                match tap::read_now(&self.queue, outbox.slot(frames)) {
                    Ok(Some(length)) => read = length,
                    Ok(None) => break,
                    Err(error) => return error,
                }
            }
            outbox.flush(&self.socket, &self.counters);
            hurry = match frames {
                1 => 1,
                _ => SLOTS,
            };
        }
    }
}

impl Outbox {
    fn new(mtu: usize) -> Self {
        Self {
            memory: vec![0; HEADERS * SEGMENTS + SLOT * SLOTS],
            segments: 0,
            batch: Batch::new(true),
            sender: Sender::new(),
            refused: false,
            mtu,
        }
    }

    fn slot(&mut self, index: usize) -> &mut [u8] {
        let start = HEADERS * SEGMENTS + SLOT * index;
        &mut self.memory[start..start + SLOT]
    }

    /// Puts the frame of `read` bytes in slot `index` into the batch.
    fn add(
        &mut self,
        table: &Table,
        index: usize,
        read: usize,
        socket: &UdpSocket,
        counters: &Counters,
    ) {
        counters.device.add(1);
        let start = HEADERS * SEGMENTS + SLOT * index;
        let frame = Piece {
            start: start + virtio::LENGTH,
            end: start + read.max(virtio::LENGTH),
        };
        let header: Option<&[u8; virtio::LENGTH]> = self.memory[start..].first_chunk();
        let Some(header) = header.and_then(VirtioHeader::read) else {
            counters.lost(Reason::Malformed);
            return;
        };
        let bytes = &mut self.memory[frame.start..frame.end];
        let Some(to) = table.outgoing(bytes) else {
            counters.lost(Reason::NoPeer);
            return;
        };
        match prepare(&header, bytes, self.mtu) {
            Ok(None) => {
                // Over the virtio header, which has been read.
                let start = frame.start - VXLAN;
                self.memory[start..frame.start].copy_from_slice(&table.header());
                counters.frames.add(1);
                counters.bytes.add(frame.end - frame.start);
                self.make_room(socket, counters);
                let end = frame.end;
                self.batch.push(to, Piece { start, end }, None);
            }
            Ok(Some(cut)) => {
                counters.frames.add(cut.count());
                counters.segments.add(cut.count());
                for index in 0..cut.count() {
                    self.make_room(socket, counters);
                    let (head, tail) = self.write_segment(table, frame, &cut, index);
                    counters
                        .bytes
                        .add(head.end - head.start - VXLAN + tail.end - tail.start);
                    self.batch.push(to, head, Some(tail));
                }
            }
            Err(reason) => counters.lost(reason),
        }
    }

    /// Writes the headers of a segment; returns where they and its payload are.
    fn write_segment(
        &mut self,
        table: &Table,
        frame: Piece,
        cut: &Cut,
        index: usize,
    ) -> (Piece, Piece) {
        let (headers, frames) = self.memory.split_at_mut(HEADERS * SEGMENTS);
        let bytes = &frames[frame.start - headers.len()..frame.end - headers.len()];
        let start = HEADERS * self.segments;
        let end = start + VXLAN + cut.header();
        let head = &mut headers[start..end];
        head[..VXLAN].copy_from_slice(&table.header());
        cut.write_headers(bytes, index, &mut head[VXLAN..]);
        self.segments += 1;
        let payload = cut.payload(index);
        let tail = Piece {
            start: frame.start + payload.start,
            end: frame.start + payload.end,
        };
        (Piece { start, end }, tail)
    }

    fn make_room(&mut self, socket: &UdpSocket, counters: &Counters) {
        if self.batch.is_full() || self.segments == SEGMENTS {
            self.flush(socket, counters);
        }
    }

    fn flush(&mut self, socket: &UdpSocket, counters: &Counters) {
        if self.batch.is_empty() {
            return;
        }
        counters.calls.add(1);
        let mut no_segmentation = false;
        let batch = &self.batch;
        self.sender
            .send(socket, &self.memory, batch, |index, error| {
                let message = &batch.messages()[index];
                // What can't be sent is lost, as on any wire.
                for _ in 0..message.count {
                    counters.lost(Reason::NotSent);
                }
                debug!(%error, to = %message.to, "not sent");
                // A link without checksum offload, or a kernel before 4.18.
                no_segmentation |= message.count > 1
                    && matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL));
            });
        if no_segmentation && !self.refused {
            warn!(
                "the kernel takes no UDP_SEGMENT here: a message for each datagram, which is slower"
            );
            self.refused = true;
            self.batch.stop_joining();
        }
        self.batch.clear();
        self.segments = 0;
    }
}
