//! Frames made of an input come back the same, one connection for all of them: header blocks share a compression stream.

#![no_main]

use hpk_spdy::{Decoder, Encoder, Frame};
use libfuzzer_sys::fuzz_target;

/// What is cut off the front of the input; zeros behind its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn id(&mut self) -> u32 {
        u32::from_be_bytes([self.byte() & 0x7f, self.byte(), self.byte(), self.byte()])
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    fn headers(&mut self) -> Vec<(String, String)> {
        (0..self.byte() % 8).map(|_| (self.text(), self.text())).collect()
    }

    fn frame(&mut self) -> Frame {
        let (kind, id) = (self.byte(), self.id());
        let fin = kind & 0x80 != 0;
        match kind % 9 {
            0 => Frame::SynStream { id, fin, headers: self.headers() },
            1 => Frame::SynReply { id, fin, headers: self.headers() },
            2 => Frame::RstStream { id, status: self.id() },
            3 => Frame::Settings,
            4 => Frame::Ping { id },
            5 => Frame::GoAway { last: id, status: self.id() },
            6 => Frame::Headers { id, fin, headers: self.headers() },
            7 => Frame::WindowUpdate { id, delta: self.id() },
            _ => Frame::Data { id, fin, bytes: self.bytes() },
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
    while !input.0.is_empty() {
        let frame = input.frame();
        let mut bytes = Vec::new();
        encoder.encode(&frame, &mut bytes).expect("a frame of ours");
        decoder.feed(&bytes);
        assert_eq!(decoder.next_frame().expect("a frame of ours"), Some(frame));
        assert_eq!(decoder.next_frame().expect("nothing more"), None);
    }
});
