//! A frame with its virtio header, as a TAP gives it: what it is cut into
//! fits the MTU, and is the same stream when the peer has joined it again.

#![no_main]

use cni_hpk_fuzz::{Input, MTUS, PEER, address, receive, table};
use hpk_frames::codec::cut::{LONGEST_HEADERS, prepare};
use hpk_frames::codec::headers::{ETHERNET, Layout};
use hpk_frames::codec::virtio::{LENGTH, VirtioHeader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let all = input.byte();
    let mtu = MTUS[usize::from(all & 3)];
    let longest = ETHERNET + mtu as usize;
    let zeros = usize::from(input.number());
    let Some((header, frame)) = input.0.split_first_chunk::<LENGTH>() else {
        return;
    };
    let Some(header) = VirtioHeader::read(header) else {
        return;
    };
    let mut frame = frame.to_vec();
    frame.resize(frame.len() + zeros, 0);
    let table = table(false);
    let to_peer = frame.len() >= ETHERNET && frame.starts_with(&PEER);
    assert_eq!(table.outgoing(&frame).is_some(), to_peer);
    address(&mut frame);
    let segments = match prepare(&header, &mut frame, mtu as usize) {
        Err(_) => return,
        Ok(None) => vec![frame.clone()],
        Ok(Some(cut)) => {
            assert!(cut.header() <= LONGEST_HEADERS && cut.count() > 0);
            let segment = |index| {
                let mut segment = vec![0; cut.header()];
                cut.write_headers(&frame, index, &mut segment);
                segment.extend(&frame[cut.payload(index)]);
                segment
            };
            let segments: Vec<Vec<u8>> = (0..cut.count()).map(segment).collect();
            let payloads = segments.iter().flat_map(|it| &it[cut.header()..]);
            assert!(payloads.eq(&frame[cut.header()..]), "a payload was changed");
            segments
        }
    };
    assert!(segments.iter().all(|it| it.len() <= longest));
    if segments.len() > 1 {
        for segment in &segments {
            if let Some(layout) = Layout::parse(segment) {
                assert!(layout.is_verified(segment), "a wrong checksum");
            }
        }
    }
    let messages: Vec<_> = segments
        .iter()
        .map(|segment| ([&table.header()[..], segment].concat(), None))
        .collect();
    let payload = |frames: &[Vec<u8>]| -> Option<Vec<u8>> {
        let payloads = frames.iter().map(|it| Some(&it[Layout::parse(it)?.payload..]));
        Some(payloads.collect::<Option<Vec<_>>>()?.concat())
    };
    let written = receive(false, mtu, all & 4 != 0, &messages);
    if let Some(sent) = payload(&segments) {
        // A source that no lease has, as a group's, isn't taken: `written` is empty then.
        if let Some(taken) = payload(&written).filter(|_| !written.is_empty()) {
            assert!(taken == sent, "the peer has something else");
        }
    }
});
