//! Which frame can follow which in one joined frame: the conditions of the
//! kernel's GRO, a little stricter.

use super::headers::{
    CWR, ETHERNET, FIN, IPV4, Layout, PSH, Protocol, TCP_FLAGS, TCP_SEQUENCE, V4_FRAGMENT, V4_ID,
    Version, u16_at, u32_at,
};

const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const DONT_FRAGMENT: u16 = 0x4000;

/// Whether it may be joined to anything: has a payload and none of the flags
/// and options that stand for themselves.
pub fn is_joinable(frame: &[u8], layout: &Layout) -> bool {
    let plain = match layout.version {
        Version::V4 => layout.transport == ETHERNET + IPV4,
        Version::V6 => true,
    };
    let transport = &frame[layout.transport..];
    let suits = match layout.protocol {
        Protocol::Tcp => {
            let flags = transport[TCP_FLAGS];
            flags & ACK != 0 && flags & !(ACK | PSH | FIN | ECE | CWR) == 0
        }
        // Without a checksum nothing is known of it.
        Protocol::Udp => transport[6..8] != [0, 0],
    };
    plain && suits && layout.end > layout.payload
}

/// Same addresses and ports.
pub fn is_same_flow(one: &[u8], of: &Layout, other: &[u8], layout: &Layout) -> bool {
    let addresses = match of.version {
        Version::V4 => ETHERNET + 12..ETHERNET + 20,
        Version::V6 => ETHERNET + 8..ETHERNET + 40,
    };
    of.version == layout.version
        && of.protocol == layout.protocol
        && one[of.transport..of.transport + 4] == other[layout.transport..layout.transport + 4]
        && one[addresses.clone()] == other[addresses]
}

/// Whether `next` goes on where a run of `count` frames ended, `so_far` bytes
/// of payload after the beginning of its `first`; both of the same flow.
pub fn is_next(
    first: &[u8],
    of: &Layout,
    next: &[u8],
    layout: &Layout,
    so_far: usize,
    count: u32,
) -> bool {
    of.transport == layout.transport
        && of.payload == layout.payload
        && first[..ETHERNET] == next[..ETHERNET]
        && is_same_ip(first, next, of.version, count)
        && match of.protocol {
            Protocol::Tcp => {
                let (header, end) = (of.transport, of.payload);
                is_next_tcp(&first[header..end], &next[header..end], so_far)
            }
            Protocol::Udp => true,
        }
}

fn is_same_ip(first: &[u8], next: &[u8], version: Version, count: u32) -> bool {
    let same = |from: usize, to: usize| {
        first[ETHERNET + from..ETHERNET + to] == next[ETHERNET + from..ETHERNET + to]
    };
    match version {
        Version::V4 => {
            let fragment = u16_at(first, V4_FRAGMENT).unwrap_or_default();
            // The count is at most a batch's.
            let id = u16_at(first, V4_ID).map(|id| id.wrapping_add(count as u16));
            // Version and type of service; flags; time to live.
            same(0, 2) && same(6, 9) && (fragment & DONT_FRAGMENT != 0 || u16_at(next, V4_ID) == id)
        }
        // Traffic class and flow label; hop limit.
        Version::V6 => same(0, 4) && same(6, 8),
    }
}

fn is_next_tcp(first: &[u8], next: &[u8], so_far: usize) -> bool {
    let sequence = |header| u32_at(header, TCP_SEQUENCE).unwrap_or_default();
    let flags = first[TCP_FLAGS] ^ next[TCP_FLAGS];
    // Sequence numbers are modulo 2^32.
    sequence(next) == sequence(first).wrapping_add(so_far as u32)
        && flags & !(FIN | PSH | CWR) == 0
        && next[TCP_FLAGS] & CWR == 0
        // Acknowledgement and header length; window; urgent pointer and options.
        && first[8..13] == next[8..13]
        && first[14..16] == next[14..16]
        && first[18..] == next[18..]
}
