//! Datagrams of a peer, hostile or not. Each: flags, length of the datagrams
//! that UDP_GRO would tell, zeros to append, length, bytes.

#![no_main]

use cni_hpk_fuzz::{Input, MTUS, address, from, receive, sum, table};
use hpk_frames::codec::table::VXLAN;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let all = input.byte();
    let (kernel, udp) = (all & 1 != 0, all & 2 != 0);
    let mtu = MTUS[usize::from(all >> 2 & 3)];
    let table = table(kernel);
    let mut messages = Vec::new();
    let mut total = 0;
    while !input.0.is_empty() && messages.len() < 16 && total < 128 << 10 {
        let flags = input.byte();
        let datagram = Some(input.number()).filter(|_| flags & 1 != 0);
        let zeros = usize::from(input.number());
        let length = usize::from(input.number());
        let mut bytes = input.bytes(length);
        bytes.resize(bytes.len() + zeros, 0);
        // As a peer's own kernel would have made it.
        if flags & 2 != 0 {
            let step = datagram.map_or(usize::MAX, |size| usize::from(size).max(1));
            for one in bytes.chunks_mut(step) {
                if let Some((header, frame)) = one.split_at_mut_checked(VXLAN) {
                    header.copy_from_slice(&table.header());
                    address(frame);
                    sum(frame, flags & 4 != 0);
                }
            }
        }
        bytes.truncate(65535);
        let _ = table.incoming(from(), &bytes);
        total += bytes.len();
        messages.push((bytes, datagram));
    }
    let received: usize = messages.iter().map(|(bytes, _)| bytes.len()).sum();
    let written: usize = receive(kernel, mtu, udp, &messages).iter().map(Vec::len).sum();
    assert!(written <= received, "{written} bytes of {received}");
});
