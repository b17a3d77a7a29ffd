//! Whatever comes over the relay's socket: a request, an answer, a frame.

#![no_main]

use cni_hpk::relay::wire::{
    Answer, Attachment, Request, check_frame, decode_answer, decode_request, encode,
};
use hpk_frames::codec::virtio::{LENGTH, VirtioHeader};
use libfuzzer_sys::fuzz_target;

/// They become file names, and an interface's.
fn check(attachment: &Attachment) {
    for name in [&attachment.network, &attachment.container_id, &attachment.ifname] {
        assert!(!name.is_empty() && !name.contains(['/', ':', '\0']), "{name:?}");
    }
    assert!(attachment.ifname.len() < 16);
}

fuzz_target!(|data: &[u8]| {
    if let Ok(mut request) = decode_request(data) {
        match &mut request {
            Request::Join { attachment, .. } | Request::Leave { attachment } => check(attachment),
            // Its numbers may be rounded.
            Request::Plugin(plugin) => plugin.prev_result = None,
            Request::Status => {}
        }
        let bytes = encode(&request).expect("a request that was taken");
        assert_eq!(decode_request(&bytes).expect("our own"), request);
    }
    if let Ok(Answer::Added { attachment, .. }) = decode_answer(data) {
        check(&attachment);
    }
    if check_frame(data).is_ok() {
        let (header, frame) = data.split_first_chunk::<LENGTH>().expect("a header");
        let header = VirtioHeader::read(header).expect("a kind that a device knows");
        if let Some(sum) = header.checksum {
            assert!(usize::from(sum.start) + usize::from(sum.offset) + 2 <= frame.len());
        }
        if let Some(segments) = header.segments {
            assert!(segments.size > 0 && usize::from(segments.header) <= frame.len());
        }
    }
});
