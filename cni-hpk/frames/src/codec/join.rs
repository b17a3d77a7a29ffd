//! Joins the TCP segments, or UDP datagrams, of a flow that came together in
//! one batch into one frame of up to 64 KiB with a virtio header: what GRO
//! does in the kernel. The bytes stay where they are; only headers change.
//!
//! Guarantees: frames of a flow keep their order. Nothing is joined whose
//! checksum isn't right, nor waited for beyond the batch: what is joined can
//! be cut again into frames that differ at most in the IPv4 identification of
//! packets that may not be fragmented (RFC 6864).

use super::headers::{
    CWR, ETHERNET, FIN, Layout, PSH, Protocol, TCP_FLAGS, UDP_LENGTH, Version, set_ip_length,
};
use super::same_flow::{is_joinable, is_next, is_same_flow};
use super::virtio::{PartialChecksum, Segmentation, Segments, VirtioHeader};

/// A part of the memory that a batch was received into, offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub start: usize,
    pub end: usize,
}

impl Piece {
    fn of(self, memory: &[u8]) -> &[u8] {
        &memory[self.start..self.end]
    }
}

/// What is known of a frame besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// From a kernel's VXLAN device: over virtual links its checksum may be
    /// left to nobody, and it may be longer than the MTU, not cut yet.
    pub kernel: bool,
    /// Payload of each datagram of a UDP frame not cut yet, bytes.
    pub datagram: Option<u16>,
}

/// One frame, or several joined.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    first: Piece,
    layout: Option<Layout>,
    origin: Origin,
    /// The list of the payloads after the first frame's.
    next: u32,
    last: u32,
    /// Frames in it.
    count: u32,
    /// Payload of the first, bytes.
    size: usize,
    /// Of all, with the headers, bytes.
    length: usize,
    /// Whether it is known that the first one's checksum is right.
    checked: bool,
    header: VirtioHeader,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    payload: Piece,
    next: u32,
}

const NONE: u32 = u32::MAX;
/// Flows joined at a time; of more, the one that began first is no longer.
const OPEN: usize = 32;
/// Datagrams of a UDP frame (the kernel's UDP_MAX_SEGMENTS, before 6.9).
const LONGEST_UDP: u32 = 64;
/// Segments of a TCP frame: fewer than one writev(2) takes.
const LONGEST_TCP: u32 = 1000;
/// Frames of one batch before it has to be written.
pub const CAPACITY: usize = 4096;

/// A batch. Memory is taken once, by [`Joiner::new`].
#[derive(Debug)]
pub struct Joiner {
    runs: Vec<Run>,
    links: Vec<Link>,
    /// Indices of runs that may still grow.
    open: Vec<u32>,
    /// Of the device, bytes.
    mtu: usize,
    /// Whether the device takes joined UDP.
    udp: bool,
}

impl Joiner {
    /// `mtu` of the device the frames are written to, bytes; `udp`: whether it
    /// takes joined UDP.
    pub fn new(mtu: u32, udp: bool) -> Self {
        Self {
            runs: Vec::with_capacity(CAPACITY),
            links: Vec::with_capacity(CAPACITY),
            open: Vec::with_capacity(OPEN),
            mtu: mtu as usize,
            udp,
        }
    }

    /// Whether the batch has to be written before the next frame.
    pub fn is_full(&self) -> bool {
        self.runs.len() == CAPACITY || self.links.len() == CAPACITY
    }

    pub fn clear(&mut self) {
        self.runs.clear();
        self.links.clear();
        self.open.clear();
    }

    /// Takes in the frame at `piece`. False: it is longer than the MTU, and not
    /// one that a kernel has left uncut and our device can cut.
    pub fn push(&mut self, memory: &mut [u8], piece: Piece, origin: Origin) -> bool {
        let frame = piece.of(memory);
        let long = frame.len() > ETHERNET + self.mtu || origin.datagram.is_some();
        if long && !origin.kernel {
            return false;
        }
        let Some(layout) = Layout::parse(frame) else {
            if !long {
                self.start(piece, None, origin);
            }
            return !long;
        };
        let joins =
            is_joinable(frame, &layout) && !long && (self.udp || layout.protocol == Protocol::Tcp);
        let found = self.open.iter().rposition(|index| {
            let run = &self.runs[*index as usize];
            run.layout
                .is_some_and(|of| is_same_flow(run.first.of(memory), &of, frame, &layout))
        });
        if let Some(position) = found {
            let index = self.open[position];
            if joins && self.append(memory, index, piece, &layout, origin) {
                if !self.runs[index as usize].may_grow(memory, &layout, piece) {
                    self.open.remove(position);
                }
                return true;
            }
            self.open.remove(position);
        }
        if long {
            return self.start_long(memory, piece, layout, origin);
        }
        let index = self.start(piece, Some(layout), origin);
        if joins && self.runs[index as usize].may_grow(memory, &layout, piece) {
            if self.open.len() == OPEN {
                self.open.remove(0);
            }
            self.open.push(index);
        }
        true
    }

    fn start(&mut self, first: Piece, layout: Option<Layout>, origin: Origin) -> u32 {
        let size = layout.map_or(0, |layout| layout.end - layout.payload);
        self.runs.push(Run {
            first,
            layout,
            origin,
            next: NONE,
            last: NONE,
            count: 1,
            size,
            length: layout.map_or(first.end - first.start, |layout| layout.end),
            checked: false,
            header: VirtioHeader::default(),
        });
        // At most CAPACITY.
        (self.runs.len() - 1) as u32
    }

    /// A frame that a kernel has not cut, for no device on the way needed it.
    fn start_long(&mut self, memory: &[u8], piece: Piece, layout: Layout, origin: Origin) -> bool {
        let frame = piece.of(memory);
        let room = self.mtu.saturating_sub(layout.payload - ETHERNET);
        let size = match layout.protocol {
            // The sender's own size is not told; this one is right for us.
            Protocol::Tcp => Some(room),
            Protocol::Udp => origin.datagram.map(usize::from).filter(|_| self.udp),
        };
        let Some(size) = size.filter(|size| (1..=room).contains(size)) else {
            return false;
        };
        // Only what is left to a device can be cut by it.
        if !layout.is_partial(frame) {
            return false;
        }
        let index = self.start(piece, Some(layout), origin) as usize;
        self.runs[index].header = layout.virtio(frame, size);
        true
    }

    fn append(
        &mut self,
        memory: &mut [u8],
        index: u32,
        piece: Piece,
        layout: &Layout,
        origin: Origin,
    ) -> bool {
        let run = &mut self.runs[index as usize];
        let Some(of) = run.layout else {
            return false;
        };
        let (first, frame) = (run.first.of(memory), piece.of(memory));
        let size = layout.end - layout.payload;
        let fits = size <= run.size
            && run.length + size <= ETHERNET + usize::from(u16::MAX)
            && run.count < longest(layout.protocol);
        let so_far = run.length - of.payload;
        if !fits || !is_next(first, &of, frame, layout, so_far, run.count) {
            return false;
        }
        run.checked = run.checked || is_right(first, &of, run.origin);
        if !run.checked || !is_right(frame, layout, origin) {
            return false;
        }
        if layout.protocol == Protocol::Tcp {
            let last = frame[layout.transport + TCP_FLAGS] & (FIN | PSH);
            memory[run.first.start + of.transport + TCP_FLAGS] |= last;
        }
        // At most CAPACITY.
        let link = self.links.len() as u32;
        self.links.push(Link {
            payload: Piece {
                start: piece.start + layout.payload,
                end: piece.start + layout.end,
            },
            next: NONE,
        });
        match run.last {
            NONE => run.next = link,
            last => self.links[last as usize].next = link,
        }
        run.last = link;
        run.count += 1;
        run.length += size;
        true
    }

    /// Writes the headers of what has been joined. Once a batch, before
    /// [`Self::runs`].
    pub fn finish(&mut self, memory: &mut [u8]) {
        for run in &mut self.runs {
            let Some(layout) = run.layout else { continue };
            let bytes = &mut memory[run.first.start..run.first.end];
            if run.count > 1 {
                set_ip_length(bytes, layout.version, layout.transport, run.length);
                let joined = Layout {
                    end: run.length,
                    ..layout
                };
                let field = joined.checksum();
                let pseudo = joined.pseudo(bytes).fold();
                bytes[field..field + 2].copy_from_slice(&pseudo);
                if layout.protocol == Protocol::Udp {
                    let length = (run.length - layout.transport) as u16;
                    let field = layout.transport + UDP_LENGTH;
                    bytes[field..field + 2].copy_from_slice(&length.to_be_bytes());
                }
                run.header = joined.virtio(bytes, run.size);
            } else if run.header.segments.is_none()
                && run.origin.kernel
                && layout.is_partial(bytes)
                && !layout.is_verified(bytes)
            {
                run.header.checksum = layout.virtio(bytes, 1).checksum;
            }
        }
    }

    /// What is to be written, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The run's bytes, in order: whose first has all headers.
    pub fn pieces(&self, run: &Run) -> impl Iterator<Item = Piece> {
        let first = Piece {
            start: run.first.start,
            end: match run.count {
                1 => run.first.end,
                // Without the padding of a short frame.
                _ => run.first.start + run.layout.map_or(0, |layout| layout.end),
            },
        };
        let mut next = run.next;
        std::iter::once(first).chain(std::iter::from_fn(move || {
            let link = self.links.get(next as usize)?;
            next = link.next;
            Some(link.payload)
        }))
    }
}

impl Run {
    pub fn header(&self) -> VirtioHeader {
        self.header
    }

    /// Frames joined in it.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether another may follow this one, its last.
    fn may_grow(&self, memory: &[u8], layout: &Layout, last: Piece) -> bool {
        let frame = last.of(memory);
        let whole = layout.end - layout.payload == self.size;
        let last = layout.protocol == Protocol::Tcp
            && frame[layout.transport + TCP_FLAGS] & (FIN | PSH) != 0;
        whole && !last && self.count < longest(layout.protocol)
    }
}

fn longest(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => LONGEST_TCP,
        Protocol::Udp => LONGEST_UDP,
    }
}

impl Layout {
    /// The header for a frame of segments of `size` bytes whose checksum is
    /// partial.
    fn virtio(&self, frame: &[u8], size: usize) -> VirtioHeader {
        let cwr = self.protocol == Protocol::Tcp && frame[self.transport + TCP_FLAGS] & CWR != 0;
        let kind = match (self.protocol, self.version) {
            (Protocol::Tcp, Version::V4) => Segmentation::Tcp4 { cwr },
            (Protocol::Tcp, Version::V6) => Segmentation::Tcp6 { cwr },
            (Protocol::Udp, _) => Segmentation::Udp,
        };
        // Headers end within the first 200 bytes, a payload within 64 KiB.
        VirtioHeader {
            checksum: Some(PartialChecksum {
                start: self.transport as u16,
                offset: self.protocol.checksum() as u16,
            }),
            segments: Some(Segments {
                kind,
                size: size as u16,
                header: self.payload as u16,
            }),
        }
    }
}

/// Whether the checksum is right, or left to a device by a kernel.
fn is_right(frame: &[u8], layout: &Layout, origin: Origin) -> bool {
    layout.is_verified(frame) || origin.kernel && layout.is_partial(frame)
}
