//! Whatever a peer sends, in whatever pieces: no panic, no frame longer than what came, and the same frames however the
//! bytes were cut. The first byte says where.

#![no_main]

use hpk_spdy::{Decoder, Frame};
use libfuzzer_sys::fuzz_target;

/// The frames up to the first error, fed in pieces of `size` bytes.
fn decode(bytes: &[u8], size: usize) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in bytes.chunks(size) {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((size, bytes)) = data.split_first() else {
        return;
    };
    let whole = decode(bytes, bytes.len().max(1));
    assert_eq!(decode(bytes, usize::from(*size).max(1)), whole);
    let data: usize = whole
        .0
        .iter()
        .map(|frame| match frame {
            Frame::Data { bytes, .. } => bytes.len() + 8,
            _ => 8,
        })
        .sum();
    assert!(data <= bytes.len(), "{data} bytes out of {}", bytes.len());
});
