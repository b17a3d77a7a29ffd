//! Where the headers of a frame are, and what is written into them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;

/// Length of an Ethernet header without VLAN tag, bytes.
pub const ETHERNET: usize = 14;
/// Of an IPv4 header without options, bytes.
pub const IPV4: usize = 20;
pub const IPV6: usize = 40;
pub const TCP: usize = 20;
pub const UDP: usize = 8;

/// Offsets from the transport header, bytes.
pub const TCP_SEQUENCE: usize = 4;
pub const TCP_FLAGS: usize = 13;
pub const TCP_CHECKSUM: usize = 16;
pub const UDP_LENGTH: usize = 4;
pub const UDP_CHECKSUM: usize = 6;

/// Offsets from the frame's beginning, bytes.
pub const V4_LENGTH: usize = ETHERNET + 2;
pub const V4_ID: usize = ETHERNET + 4;
pub const V4_FRAGMENT: usize = ETHERNET + 6;
pub const V4_CHECKSUM: usize = ETHERNET + 10;
pub const V6_LENGTH: usize = ETHERNET + 4;

pub const FIN: u8 = 0x01;
pub const PSH: u8 = 0x08;
pub const CWR: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Its number in IP headers.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Where its checksum is, from its header's beginning, bytes.
    pub fn checksum(self) -> usize {
        match self {
            Self::Tcp => TCP_CHECKSUM,
            Self::Udp => UDP_CHECKSUM,
        }
    }
}

/// A whole TCP segment or UDP datagram in a frame: offsets in bytes from the
/// frame's beginning, all within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub version: Version,
    pub protocol: Protocol,
    pub transport: usize,
    pub payload: usize,
    /// Of the IP packet. Short frames have padding behind it.
    pub end: usize,
}

impl Layout {
    /// `None` for anything else: other protocols, fragments, IPv6 extension
    /// headers, lengths that contradict each other.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (version, transport, end, protocol) = match ip_version(frame)? {
            Version::V4 => {
                let header = usize::from(*frame.get(ETHERNET)? & 0x0f) * 4;
                // "More fragments" or an offset.
                let whole = u16_at(frame, V4_FRAGMENT)? & 0x3fff == 0;
                let end = ETHERNET + usize::from(u16_at(frame, V4_LENGTH)?);
                let protocol = *frame.get(ETHERNET + 9)?;
                (header >= IPV4 && whole).then_some((
                    Version::V4,
                    ETHERNET + header,
                    end,
                    protocol,
                ))?
            }
            Version::V6 => {
                let transport = ETHERNET + IPV6;
                let end = transport + usize::from(u16_at(frame, V6_LENGTH)?);
                (Version::V6, transport, end, *frame.get(ETHERNET + 6)?)
            }
        };
        let segment = frame.get(transport..end)?;
        let (protocol, header) = match protocol {
            6 => {
                let header = usize::from(*segment.get(12)? >> 4) * 4;
                (header >= TCP).then_some((Protocol::Tcp, header))?
            }
            17 => {
                let length = usize::from(u16_at(segment, UDP_LENGTH)?);
                (length == segment.len()).then_some((Protocol::Udp, UDP))?
            }
            _ => return None,
        };
        (segment.len() >= header).then_some(Self {
            version,
            protocol,
            transport,
            payload: transport + header,
            end,
        })
    }

    /// Of the checksum, from the frame's beginning.
    pub fn checksum(&self) -> usize {
        self.transport + self.protocol.checksum()
    }

    /// Whether the sum over pseudo header, header and payload is right. A UDP
    /// checksum of zero, which is none, is not.
    pub fn is_verified(&self, frame: &[u8]) -> bool {
        let segment = &frame[self.transport..self.end];
        let at = self.protocol.checksum();
        let absent = self.protocol == Protocol::Udp && segment[at..at + 2] == [0, 0];
        !absent && self.pseudo(frame).with(segment).fold() == [0xff, 0xff]
    }

    /// Whether the field holds no more than the pseudo header's sum: a
    /// checksum that the sender's kernel left to a device, and that virtual
    /// links between the hosts never filled in.
    pub fn is_partial(&self, frame: &[u8]) -> bool {
        let at = self.checksum();
        frame[at..at + 2] == self.pseudo(frame).fold()
    }

    /// The pseudo header's sum.
    pub fn pseudo(&self, frame: &[u8]) -> Sum {
        pseudo(
            frame,
            self.version,
            self.protocol,
            self.end - self.transport,
        )
    }
}

/// The pseudo header's sum for `length` bytes of transport header and
/// payload. The frame's IP header must be whole.
pub fn pseudo(frame: &[u8], version: Version, protocol: Protocol, length: usize) -> Sum {
    let number = protocol.number();
    let [.., a, b, c, d] = length.to_be_bytes();
    match version {
        Version::V4 => Sum::default()
            .with(&frame[ETHERNET + 12..ETHERNET + 20])
            .with(&[0, number, c, d]),
        Version::V6 => Sum::default()
            .with(&frame[ETHERNET + 8..ETHERNET + 40])
            .with(&[a, b, c, d, 0, 0, 0, number]),
    }
}

/// Writes the IP header's length, and IPv4's checksum. `end`: of the packet.
pub fn set_ip_length(header: &mut [u8], version: Version, transport: usize, end: usize) {
    // Callers make no packet longer than 65535 bytes.
    match version {
        Version::V4 => {
            let length = (end - ETHERNET) as u16;
            header[V4_LENGTH..V4_LENGTH + 2].copy_from_slice(&length.to_be_bytes());
            set_v4_checksum(header, transport);
        }
        Version::V6 => {
            let length = (end - ETHERNET - IPV6) as u16;
            header[V6_LENGTH..V6_LENGTH + 2].copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// `transport`: where the IPv4 header ends.
pub fn set_v4_checksum(header: &mut [u8], transport: usize) {
    header[V4_CHECKSUM..V4_CHECKSUM + 2].fill(0);
    let checksum = Sum::default().with(&header[ETHERNET..transport]).finish();
    header[V4_CHECKSUM..V4_CHECKSUM + 2].copy_from_slice(&checksum);
}

/// By Ethernet's type and the packet's own first bits, which must agree; the
/// fixed header is whole.
pub fn ip_version(frame: &[u8]) -> Option<Version> {
    let nibble = frame.get(ETHERNET)? >> 4;
    match (u16_at(frame, 12)?, nibble) {
        (0x0800, 4) => (frame.len() >= ETHERNET + IPV4).then_some(Version::V4),
        (0x86dd, 6) => (frame.len() >= ETHERNET + IPV6).then_some(Version::V6),
        _ => None,
    }
}

/// The sender's address, if the frame holds an IP packet.
pub fn source(frame: &[u8]) -> Option<IpAddr> {
    match ip_version(frame)? {
        Version::V4 => {
            let octets: [u8; 4] = frame.get(ETHERNET + 12..ETHERNET + 16)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets).into())
        }
        Version::V6 => {
            let octets: [u8; 16] = frame.get(ETHERNET + 8..ETHERNET + 24)?.try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        }
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([word[0], word[1]]))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
}
