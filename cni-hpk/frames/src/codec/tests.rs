//! Cut and join against each other, and against a checksum written apart.

use proptest::prelude::*;

use super::arrival::{Message, take};
use super::cut::{Cut, Malformed, prepare};
use super::headers::*;
use super::join::{Joiner, Origin, Piece};
use super::table::tests::{OWN, PEER, from, table};
use super::table::{Refusal, VXLAN};
use super::virtio::{PartialChecksum, Segmentation, Segments, VirtioHeader};

const MTU: u32 = 1450;

/// A flow's long frame, as a TAP gives it.
#[derive(Clone, Debug)]
struct Long {
    version: Version,
    protocol: Protocol,
    payload: Vec<u8>,
    size: u16,
    flags: u8,
    options: usize,
}

/// Word by word, as RFC 1071's example in C does.
fn reference(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for word in bytes.chunks(2) {
        let low = word.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([word[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Pseudo header, transport header and payload of a frame in a row.
fn covered(frame: &[u8], version: Version) -> Vec<u8> {
    let (mut bytes, transport, protocol) = match version {
        Version::V4 => (frame[26..34].to_vec(), 34, frame[23]),
        Version::V6 => (frame[22..54].to_vec(), 54, frame[20]),
    };
    let length = u32::try_from(frame.len() - transport).unwrap();
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(&frame[transport..]);
    bytes
}

impl Long {
    fn header_length(&self) -> usize {
        let ip = match self.version {
            Version::V4 => IPV4,
            Version::V6 => IPV6,
        };
        ETHERNET
            + ip
            + match self.protocol {
                Protocol::Tcp => TCP + 4 * self.options,
                Protocol::Udp => UDP,
            }
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = [OWN, PEER].concat();
        let ip = match self.version {
            Version::V4 => IPV4,
            Version::V6 => IPV6,
        };
        let length = self.header_length() - ETHERNET + self.payload.len();
        let high_low = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        match self.version {
            Version::V4 => {
                frame.extend([8, 0, 0x45, 2]);
                frame.extend(high_low(length));
                frame.extend([0xff, 0xfe, 0x40, 0, 63, self.protocol.number(), 0, 0]);
                frame.extend([10, 244, 5, 7, 10, 244, 3, 9]);
                let checksum = !reference(&frame[ETHERNET..]);
                frame[24..26].copy_from_slice(&checksum.to_be_bytes());
            }
            Version::V6 => {
                frame.extend([0x86, 0xdd, 0x60, 1, 2, 3]);
                frame.extend(high_low(length - IPV6));
                frame.extend([self.protocol.number(), 63]);
                let address = |net| [0xfd, 0, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
                frame.extend(address(5));
                frame.extend(address(3));
            }
        }
        frame.extend([0x30, 0x39, 0, 80]);
        match self.protocol {
            Protocol::Tcp => {
                // A sequence number that wraps round on the way.
                frame.extend([0xff, 0xff, 0xff, 0x00, 1, 2, 3, 4]);
                let offset = u8::try_from(5 + self.options).unwrap() << 4;
                frame.extend([offset, self.flags, 5, 6, 0, 0, 0, 0]);
                frame.extend(vec![1; 4 * self.options]);
            }
            Protocol::Udp => {
                frame.extend(high_low(length - ip));
                frame.extend([0, 0]);
            }
        }
        frame.extend(&self.payload);
        let partial = reference(&covered(&frame, self.version)[..pseudo_length(self.version)]);
        let field = ETHERNET + ip + self.protocol.checksum();
        frame[field..field + 2].copy_from_slice(&partial.to_be_bytes());
        frame
    }

    fn virtio(&self) -> VirtioHeader {
        let transport = match self.version {
            Version::V4 => 34,
            Version::V6 => 54,
        };
        let cwr = self.protocol == Protocol::Tcp && self.flags & CWR != 0;
        VirtioHeader {
            checksum: Some(PartialChecksum {
                start: transport,
                offset: u16::try_from(self.protocol.checksum()).unwrap(),
            }),
            segments: Some(Segments {
                kind: match (self.protocol, self.version) {
                    (Protocol::Udp, _) => Segmentation::Udp,
                    (Protocol::Tcp, Version::V4) => Segmentation::Tcp4 { cwr },
                    (Protocol::Tcp, Version::V6) => Segmentation::Tcp6 { cwr },
                },
                size: self.size,
                header: u16::try_from(self.header_length()).unwrap(),
            }),
        }
    }

    fn cut(&self) -> Vec<Vec<u8>> {
        let mut frame = self.frame();
        let cut = prepare(&self.virtio(), &mut frame, MTU as usize)
            .unwrap()
            .unwrap();
        segments(&cut, &frame)
    }
}

fn pseudo_length(version: Version) -> usize {
    match version {
        Version::V4 => 16,
        Version::V6 => 40,
    }
}

fn segments(cut: &Cut, frame: &[u8]) -> Vec<Vec<u8>> {
    let segment = |index| {
        let mut segment = vec![0; cut.header()];
        cut.write_headers(frame, index, &mut segment);
        segment.extend(&frame[cut.payload(index)]);
        segment
    };
    (0..cut.count()).map(segment).collect()
}

/// What is written when these frames come in one batch.
fn join(kernel: bool, frames: &[Vec<u8>]) -> Vec<(VirtioHeader, Vec<u8>)> {
    let table = table(kernel);
    let mut joiner = Joiner::new(MTU, true);
    let mut memory = Vec::new();
    for frame in frames {
        let start = memory.len();
        memory.extend(table.header());
        memory.extend(frame);
        let bytes = Piece {
            start,
            end: memory.len(),
        };
        let message = Message {
            from: from(),
            bytes,
            datagram: None,
        };
        let taken = take(&table, &message, &mut memory, &mut joiner, |refusal| {
            panic!("{refusal:?}")
        });
        assert_eq!(taken.frames, 1);
    }
    written(joiner, &mut memory)
}

fn written(mut joiner: Joiner, memory: &mut [u8]) -> Vec<(VirtioHeader, Vec<u8>)> {
    joiner.finish(memory);
    let run = |run| {
        let pieces = joiner.pieces(run);
        let bytes: Vec<_> = pieces
            .map(|piece| &memory[piece.start..piece.end])
            .collect();
        (run.header(), bytes.concat())
    };
    joiner.runs().iter().map(run).collect()
}

fn long() -> impl Strategy<Value = Long> {
    let version = prop_oneof![Just(Version::V4), Just(Version::V6)];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let flags = prop_oneof![Just(0x10), Just(0x18), Just(0x11), Just(0xd0), Just(0x98)];
    (
        version,
        protocol,
        // With the longest headers no longer than the MTU.
        1..=1350_u16,
        2..=60_usize,
        flags,
        0..=10_usize,
        any::<u64>(),
    )
        .prop_map(|(version, protocol, size, count, flags, options, seed)| {
            let most = 65535 - 40 - 60;
            let length = (usize::from(size) * count).min(most) - (seed % u64::from(size)) as usize;
            let mut value = seed | 1;
            let payload = std::iter::repeat_with(|| {
                value = value
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (value >> 56) as u8
            });
            Long {
                version,
                protocol,
                payload: payload.take(length).collect(),
                size,
                flags,
                options,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn each_segment_has_right_lengths_and_checksums(long in long()) {
        let frames = long.cut();
        let payload = frames.iter().flat_map(|frame| &frame[long.header_length()..]);
        prop_assert!(payload.eq(&long.payload));
        for frame in &frames {
            prop_assert_eq!(reference(&covered(frame, long.version)), 0xffff);
            let length = match long.version {
                Version::V4 => {
                    prop_assert_eq!(reference(&frame[14..34]), 0xffff);
                    u16_at(frame, V4_LENGTH).map(usize::from)
                }
                Version::V6 => u16_at(frame, V6_LENGTH).map(|length| usize::from(length) + IPV6),
            };
            prop_assert_eq!(length, Some(frame.len() - ETHERNET));
            let parsed = Layout::parse(frame).unwrap();
            prop_assert!(parsed.is_verified(frame));
        }
    }

    #[test]
    fn cut_and_joined_it_is_the_same_frame(long in long()) {
        let frames = long.cut();
        prop_assume!(frames.len() > 1);
        prop_assert!(join(false, &frames) == [(long.virtio(), long.frame())]);
    }

    #[test]
    fn a_wrong_byte_is_never_covered_up(long in long(), which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
        let mut frames = long.cut();
        let which = which.index(frames.len());
        let payload = long.header_length()..frames[which].len();
        let at = payload.start + at.index(payload.len());
        frames[which][at] ^= 0x55;
        let out = join(false, &frames);
        // It comes out as it came in, without a claim about it.
        prop_assert!(out.contains(&(VirtioHeader::default(), frames[which].clone())));
    }

    #[test]
    fn any_bytes_from_a_peer_are_survived(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        edits in proptest::collection::vec((0..90_usize, any::<u8>()), 0..6),
        long in long(), datagram in proptest::option::of(any::<u16>()), kernel: bool,
    ) {
        let table = table(kernel);
        let mut memory = Vec::new();
        for frame in long.cut().iter().take(3) {
            memory.extend(table.header());
            memory.extend(frame);
        }
        memory.extend(bytes);
        for (at, byte) in edits {
            if let Some(place) = memory.get_mut(at) {
                *place = byte;
            }
        }
        let mut joiner = Joiner::new(MTU, true);
        let message = Message { from: from(), bytes: Piece { start: 0, end: memory.len() }, datagram };
        take(&table, &message, &mut memory, &mut joiner, |_| {});
        for (_, frame) in written(joiner, &mut memory) {
            prop_assert!(frame.len() <= 65535 + ETHERNET);
        }
    }

    #[test]
    fn any_bytes_from_a_tap_are_survived(
        mut frame in proptest::collection::vec(any::<u8>(), 0..300),
        header: [u8; 10], version in prop_oneof![Just([8, 0, 0x45]), Just([0x86, 0xdd, 0x60])],
    ) {
        if let Some(place) = frame.get_mut(12..15) {
            place.copy_from_slice(&version);
        }
        let Some(header) = VirtioHeader::read(&header) else { return Ok(()) };
        if let Ok(Some(cut)) = prepare(&header, &mut frame, MTU as usize) {
            let total: usize = segments(&cut, &frame).iter().map(|it| it.len() - cut.header()).sum();
            prop_assert_eq!(total, frame.len() - cut.header());
        }
    }
}

fn tcp(version: Version, length: usize, size: u16) -> Long {
    Long {
        version,
        protocol: Protocol::Tcp,
        payload: vec![7; length],
        size,
        flags: 0x10,
        options: 3,
    }
}

#[test]
fn flows_that_come_by_turns_are_joined_each_for_itself() {
    let one = tcp(Version::V4, 5000, 1000);
    let other = tcp(Version::V6, 5000, 1000);
    let frames: Vec<_> = one.cut().into_iter().zip(other.cut()).collect();
    let frames: Vec<_> = frames.into_iter().flat_map(|(a, b)| [a, b]).collect();
    let out = join(false, &frames);
    let expected = [&one, &other].map(|long| (long.virtio(), long.frame()));
    assert!(out == expected);
}

#[test]
fn a_missing_segment_ends_a_run_and_order_is_kept() {
    let long = tcp(Version::V4, 6000, 1000);
    let mut frames = long.cut();
    frames.swap(1, 2);
    let lengths: Vec<_> = join(false, &frames)
        .iter()
        .map(|it| it.1.len() - 66)
        .collect();
    assert_eq!(lengths, [1000, 1000, 1000, 3000]);
}

#[test]
fn a_reset_comes_after_what_was_sent_before_it() {
    let mut frames = tcp(Version::V4, 3000, 1000).cut();
    let mut reset = tcp(Version::V4, 2000, 1000);
    reset.flags = 0x14;
    frames.push(reset.cut().remove(0));
    frames.extend(tcp(Version::V4, 3000, 1000).cut());
    let lengths: Vec<_> = join(false, &frames)
        .iter()
        .map(|it| it.1.len() - 66)
        .collect();
    assert_eq!(lengths, [3000, 1000, 3000]);
}

#[test]
fn what_a_kernels_device_left_undone_is_left_to_the_next() {
    let long = tcp(Version::V4, 3000, 1398);
    // Not cut yet: it passed virtual links only.
    let out = join(true, &[long.frame()]);
    assert!(out == [(long.virtio(), long.frame())]);

    // Cut, without checksums.
    let short = tcp(Version::V6, 1000, 1000);
    let out = join(true, &[short.frame()]);
    let header = VirtioHeader {
        segments: None,
        ..short.virtio()
    };
    assert!(out == [(header, short.frame())]);

    // From a peer that fills them in it is just a wrong one.
    let out = join(false, &[short.frame()]);
    assert!(out == [(VirtioHeader::default(), short.frame())]);
}

#[test]
fn a_kernels_udp_frame_that_was_not_cut_is_told_from_several_datagrams() {
    let long = Long {
        protocol: Protocol::Udp,
        ..tcp(Version::V4, 5000, 1200)
    };
    let table = table(true);
    let mut memory = [&table.header()[..], &long.frame()].concat();
    let message = Message {
        from: from(),
        bytes: Piece {
            start: 0,
            end: memory.len(),
        },
        datagram: Some(1200),
    };
    let mut joiner = Joiner::new(MTU, true);
    let taken = take(&table, &message, &mut memory, &mut joiner, |_| {});
    assert_eq!(taken.frames, 1);
    assert!(written(joiner, &mut memory) == [(long.virtio(), long.frame())]);
}

#[test]
fn a_frame_is_cut_only_where_its_own_headers_say_so() {
    let long = tcp(Version::V6, 3000, 1000);
    let mut virtio = long.virtio();
    if let Some(checksum) = &mut virtio.checksum {
        checksum.start += 1;
    }
    let cut = |header, mut frame: Vec<u8>| prepare(&header, &mut frame, MTU as usize);
    assert_eq!(cut(virtio, long.frame()), Err(Malformed::Segments));

    // Behind eight bytes of options for the destination.
    let mut frame = long.frame();
    let options = [6, 0, 1, 4, 0, 0, 0, 0];
    frame.splice(54..54, options);
    frame[20] = 60;
    if let Some(checksum) = &mut virtio.checksum {
        checksum.start += 7;
    }
    let segments = cut(virtio, frame.clone()).unwrap().unwrap();
    assert_eq!((segments.header(), segments.count()), (54 + 8 + 32, 3));
    frame[20] = 17;
    assert_eq!(cut(virtio, frame), Err(Malformed::Segments));
}

#[test]
fn what_is_longer_than_the_mtu_is_not_sent() {
    let long = tcp(Version::V4, 3000, 1399);
    let mut frame = long.frame();
    let cut = |header, frame: &mut [u8]| prepare(&header, frame, MTU as usize);
    assert_eq!(cut(long.virtio(), &mut frame), Err(Malformed::TooLong));
    assert_eq!(
        cut(VirtioHeader::default(), &mut frame),
        Err(Malformed::TooLong)
    );
    // One segment that is shorter than it might be.
    let mut frame = tcp(Version::V4, 1398, 1399).frame();
    assert!(cut(long.virtio(), &mut frame).is_ok());
}

/// Whether a frame, with so much behind its packet, is taken.
fn is_taken(kernel: bool, long: &Long, padding: usize, datagram: Option<u16>) -> bool {
    let table = table(kernel);
    let mut memory = [&table.header()[..], &long.frame(), &vec![0; padding]].concat();
    let message = Message {
        from: from(),
        bytes: Piece {
            start: 0,
            end: memory.len(),
        },
        datagram,
    };
    let mut joiner = Joiner::new(MTU, true);
    let taken = take(&table, &message, &mut memory, &mut joiner, |refusal| {
        assert_eq!(refusal, Refusal::TooLong);
    });
    taken.frames == 1
}

#[test]
fn what_is_longer_than_the_mtu_is_not_taken_unless_our_device_can_cut_it() {
    let fits = tcp(Version::V4, 1398, 1398);
    let long = tcp(Version::V4, 1399, 1398);
    assert!(is_taken(false, &fits, 0, None));
    assert!(!is_taken(false, &fits, 1, None), "padding counts");
    assert!(!is_taken(false, &long, 0, None), "from mode host");
    assert!(is_taken(true, &long, 0, None), "from a kernel's device");

    let datagrams = |size: u16| Long {
        protocol: Protocol::Udp,
        ..tcp(Version::V4, 5000, size)
    };
    assert!(is_taken(true, &datagrams(1422), 0, Some(1422)));
    assert!(!is_taken(true, &datagrams(1423), 0, Some(1423)));
    assert!(!is_taken(false, &datagrams(1422), 0, Some(1422)));

    // Of a protocol that no device cuts.
    let mut other = long.frame();
    other[23] = 47;
    let table = table(true);
    let mut memory = [&table.header()[..], &other].concat();
    let bytes = Piece {
        start: VXLAN,
        end: memory.len(),
    };
    let origin = Origin {
        kernel: true,
        datagram: None,
    };
    assert!(!Joiner::new(MTU, true).push(&mut memory, bytes, origin));
}

#[test]
fn a_partial_checksum_is_filled_in() {
    for version in [Version::V4, Version::V6] {
        let long = tcp(version, 999, 1000);
        let mut frame = long.frame();
        let header = VirtioHeader {
            segments: None,
            ..long.virtio()
        };
        assert_eq!(prepare(&header, &mut frame, MTU as usize), Ok(None));
        assert_eq!(reference(&covered(&frame, version)), 0xffff);
    }
}
