//! Cuts the frame that a TAP read, up to 64 KiB of one TCP or UDP flow, into
//! the frames that go over the wire, each with its own headers and checksums.

use std::ops::Range;

use super::checksum::{Sum, not_zero};
use super::headers::{
    CWR, ETHERNET, FIN, IPV4, IPV6, PSH, Protocol, TCP, TCP_FLAGS, TCP_SEQUENCE, UDP, UDP_LENGTH,
    V4_ID, Version, ip_version, pseudo, set_ip_length, u16_at, u32_at,
};
use super::virtio::{PartialChecksum, Segmentation, Segments, VirtioHeader};

/// Longest headers of a frame to be cut, bytes.
pub const LONGEST_HEADERS: usize = 248;
/// Longest frame that fits into a UDP datagram over IPv4 behind the VXLAN
/// header, bytes.
pub const LONGEST_FRAME: usize = 65507 - 8;

/// Why a frame can't be sent. The kernel writes no such; a broken one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Its partial checksum lies outside it.
    Checksum,
    /// It can't be cut as its virtio header says.
    Segments,
    /// It, or what it would be cut into, is longer than the device's MTU.
    TooLong,
}

/// How one frame is cut. Offsets in bytes from the frame's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    version: Version,
    protocol: Protocol,
    transport: usize,
    header: usize,
    /// Payload of each segment but the last.
    size: usize,
    end: usize,
}

/// Makes a frame ready for the wire: fills in its checksum, or says how it is
/// to be cut. Nothing comes of it that is longer than `mtu`, of the device it
/// was read from, bytes.
pub fn prepare(
    header: &VirtioHeader,
    frame: &mut [u8],
    mtu: usize,
) -> Result<Option<Cut>, Malformed> {
    let longest = LONGEST_FRAME.min(ETHERNET.saturating_add(mtu));
    match header.segments {
        Some(segments) => {
            let cut = Cut::new(&segments, header.checksum, frame)?;
            match cut.longest() > longest {
                true => Err(Malformed::TooLong),
                false => Ok(Some(cut)),
            }
        }
        None if frame.len() > longest => Err(Malformed::TooLong),
        None => {
            if let Some(partial) = header.checksum {
                complete(partial, frame)?;
            }
            Ok(None)
        }
    }
}

fn complete(partial: PartialChecksum, frame: &mut [u8]) -> Result<(), Malformed> {
    let start = usize::from(partial.start);
    let field = start + usize::from(partial.offset);
    if start < ETHERNET || field + 2 > frame.len() {
        return Err(Malformed::Checksum);
    }
    // The field holds the pseudo header's sum, and is part of this one.
    let checksum = Sum::default().with(&frame[start..]).finish();
    frame[field..field + 2].copy_from_slice(&not_zero(checksum));
    Ok(())
}

/// Where an IPv6 packet's extension headers (RFC 8200, section 4) end, and the
/// protocol of what follows.
fn behind_extensions(frame: &[u8]) -> Option<(usize, u8)> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    let (mut at, mut next) = (ETHERNET + IPV6, *frame.get(ETHERNET + 6)?);
    while let HOP_BY_HOP | ROUTING | DESTINATION = next {
        let length = *frame.get(at + 1)?;
        next = *frame.get(at)?;
        at += (usize::from(length) + 1) * 8;
    }
    Some((at, next))
}

impl Cut {
    fn new(
        segments: &Segments,
        checksum: Option<PartialChecksum>,
        frame: &[u8],
    ) -> Result<Self, Malformed> {
        let version = ip_version(frame).ok_or(Malformed::Segments)?;
        let transport = usize::from(checksum.ok_or(Malformed::Checksum)?.start);
        let protocol = match (segments.kind, version) {
            (Segmentation::Tcp4 { .. }, Version::V4) | (Segmentation::Tcp6 { .. }, Version::V6) => {
                Protocol::Tcp
            }
            (Segmentation::Udp, _) => Protocol::Udp,
            _ => return Err(Malformed::Segments),
        };
        let named = match version {
            Version::V4 => {
                let length = usize::from(frame[ETHERNET] & 0x0f) * 4;
                Some((ETHERNET + length, frame[ETHERNET + 9]))
            }
            Version::V6 => behind_extensions(frame),
        };
        let agree = named == Some((transport, protocol.number()));
        let length = match protocol {
            Protocol::Tcp => frame
                .get(transport + 12)
                .map(|offset| usize::from(offset >> 4) * 4)
                .filter(|length| *length >= TCP),
            Protocol::Udp => Some(UDP),
        };
        let header = transport + length.ok_or(Malformed::Segments)?;
        let size = usize::from(segments.size);
        let fits = transport >= ETHERNET + IPV4
            && header <= LONGEST_HEADERS
            && header < frame.len()
            && frame.len() <= ETHERNET + usize::from(u16::MAX)
            && size > 0;
        (agree && fits)
            .then_some(Self {
                version,
                protocol,
                transport,
                header,
                size,
                end: frame.len(),
            })
            .ok_or(Malformed::Segments)
    }

    /// Length of each segment's headers, bytes.
    pub fn header(&self) -> usize {
        self.header
    }

    /// Length of the longest segment with its headers, bytes.
    fn longest(&self) -> usize {
        (self.header + self.size).min(self.end)
    }

    /// How many segments.
    pub fn count(&self) -> usize {
        (self.end - self.header).div_ceil(self.size)
    }

    /// Which part of the frame is the payload of segment `index`.
    pub fn payload(&self, index: usize) -> Range<usize> {
        let start = self.header + index * self.size;
        start..(start + self.size).min(self.end)
    }

    /// Writes the headers of segment `index` of `frame` to `out`, whose length
    /// is [`Self::header`].
    pub fn write_headers(&self, frame: &[u8], index: usize, out: &mut [u8]) {
        let payload = &frame[self.payload(index)];
        out.copy_from_slice(&frame[..self.header]);
        if self.version == Version::V4 {
            let id = u16_at(frame, V4_ID).unwrap_or_default();
            // The identification counts segments and wraps round.
            let id = id.wrapping_add(index as u16);
            out[V4_ID..V4_ID + 2].copy_from_slice(&id.to_be_bytes());
        }
        let end = self.header + payload.len();
        set_ip_length(out, self.version, self.transport, end);
        let length = end - self.transport;
        let pseudo = pseudo(out, self.version, self.protocol, length);
        let transport = &mut out[self.transport..];
        match self.protocol {
            Protocol::Tcp => self.write_tcp(frame, index, transport),
            // At most a datagram's length.
            Protocol::Udp => transport[UDP_LENGTH..UDP_LENGTH + 2]
                .copy_from_slice(&(length as u16).to_be_bytes()),
        }
        let field = self.protocol.checksum();
        transport[field..field + 2].fill(0);
        let checksum = pseudo.with(transport).with(payload).finish();
        transport[field..field + 2].copy_from_slice(&not_zero(checksum));
    }

    fn write_tcp(&self, frame: &[u8], index: usize, transport: &mut [u8]) {
        let first = u32_at(frame, self.transport + TCP_SEQUENCE).unwrap_or_default();
        // Sequence numbers are modulo 2^32.
        let sequence = first.wrapping_add((index * self.size) as u32);
        transport[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
        if index > 0 {
            transport[TCP_FLAGS] &= !CWR;
        }
        if index + 1 < self.count() {
            transport[TCP_FLAGS] &= !(FIN | PSH);
        }
    }
}
