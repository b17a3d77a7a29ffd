//! The header before each frame that a TAP reads or writes: what is left to
//! do, or known already, of its checksum and segmentation (`struct
//! virtio_net_hdr` of linux/virtio_net.h; Virtio 1.2, section 5.1.6).

/// Length of the header, bytes: a TAP's default.
pub const LENGTH: usize = 10;

/// The checksum from `csum_start` on has still to be filled in; its field
/// holds the pseudo header's sum.
const NEEDS_CSUM: u8 = 1;
/// The checksum has been looked at and is right.
const DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The first segment has CWR set (RFC 3168).
const GSO_ECN: u8 = 0x80;

/// How a frame longer than the MTU is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    Tcp4 {
        cwr: bool,
    },
    Tcp6 {
        cwr: bool,
    },
    /// Of either IP version.
    Udp,
}

/// What is left to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    pub checksum: Option<PartialChecksum>,
    pub segments: Option<Segments>,
}

/// A checksum to fill in, offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// From the frame's beginning to the transport header.
    pub start: u16,
    /// From there to the checksum.
    pub offset: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    pub kind: Segmentation,
    /// Payload of each but the last, bytes.
    pub size: u16,
    /// Of all headers, bytes: a hint of how much to copy together.
    pub header: u16,
}

impl VirtioHeader {
    /// Reads what the kernel, or a stranger, wrote. `None`: a flag or a kind
    /// that no device here was asked for.
    pub fn read(bytes: &[u8; LENGTH]) -> Option<Self> {
        if bytes[0] & !(NEEDS_CSUM | DATA_VALID) != 0 {
            return None;
        }
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let cwr = bytes[1] & GSO_ECN != 0;
        let kind = match bytes[1] & !GSO_ECN {
            0 if !cwr => None,
            GSO_TCPV4 => Some(Segmentation::Tcp4 { cwr }),
            GSO_TCPV6 => Some(Segmentation::Tcp6 { cwr }),
            GSO_UDP_L4 => Some(Segmentation::Udp),
            _ => return None,
        };
        Some(Self {
            checksum: (bytes[0] & NEEDS_CSUM != 0).then(|| PartialChecksum {
                start: number(6),
                offset: number(8),
            }),
            segments: kind.map(|kind| Segments {
                kind,
                size: number(4),
                header: number(2),
            }),
        })
    }

    /// Whether the frame behind such a header is one of several segments.
    pub fn is_segmented(bytes: &[u8]) -> bool {
        bytes.get(1).is_some_and(|kind| *kind != 0)
    }

    pub fn write(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        if let Some(PartialChecksum { start, offset }) = self.checksum {
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        if let Some(Segments { kind, size, header }) = self.segments {
            let ecn = |cwr| if cwr { GSO_ECN } else { 0 };
            bytes[1] = match kind {
                Segmentation::Tcp4 { cwr } => GSO_TCPV4 | ecn(cwr),
                Segmentation::Tcp6 { cwr } => GSO_TCPV6 | ecn(cwr),
                Segmentation::Udp => GSO_UDP_L4,
            };
            bytes[2..4].copy_from_slice(&header.to_ne_bytes());
            bytes[4..6].copy_from_slice(&size.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let checksum = Some(PartialChecksum {
            start: 34,
            offset: 16,
        });
        let of = |kind| VirtioHeader {
            checksum,
            segments: Some(Segments {
                kind,
                size: 1398,
                header: 66,
            }),
        };
        for header in [
            VirtioHeader::default(),
            VirtioHeader {
                checksum,
                segments: None,
            },
            of(Segmentation::Tcp4 { cwr: true }),
            of(Segmentation::Tcp6 { cwr: false }),
            of(Segmentation::Udp),
        ] {
            assert_eq!(VirtioHeader::read(&header.write()), Some(header));
        }
    }

    #[test]
    fn fragmentation_offload_and_unknown_kinds_are_refused() {
        for kind in [2, 3, 6, 0x7f, GSO_ECN] {
            let mut bytes = [0; LENGTH];
            bytes[1] = kind;
            assert_eq!(VirtioHeader::read(&bytes), None);
        }
        let bytes = [8, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(VirtioHeader::read(&bytes), None, "an unknown flag");
    }
}
