#![allow(clippy::unwrap_used)]

use super::*;

fn headers(kind: &str) -> Headers {
    vec![("streamtype".to_owned(), kind.to_owned())]
}

fn some_of_each() -> Vec<Frame> {
    vec![
        Frame::SynStream {
            id: 1,
            fin: false,
            headers: headers("error"),
        },
        Frame::SynReply {
            id: 1,
            fin: false,
            headers: Vec::new(),
        },
        Frame::SynStream {
            id: 3,
            fin: true,
            headers: headers("stdout"),
        },
        Frame::Data {
            id: 3,
            fin: false,
            bytes: b"text".to_vec(),
        },
        Frame::Data {
            id: 3,
            fin: true,
            bytes: Vec::new(),
        },
        Frame::RstStream { id: 3, status: 5 },
        Frame::Settings,
        Frame::Ping { id: 2 },
        Frame::Headers {
            id: 1,
            fin: true,
            headers: headers("late"),
        },
        Frame::WindowUpdate {
            id: 1,
            delta: 65536,
        },
        Frame::GoAway { last: 3, status: 0 },
    ]
}

fn decode(bytes: &[u8], step: usize) -> Result<Vec<Frame>, Error> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for chunk in bytes.chunks(step) {
        decoder.feed(chunk);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

#[test]
fn frames_come_back_however_the_bytes_are_cut() {
    let mut encoder = Encoder::default();
    let mut bytes = Vec::new();
    for frame in some_of_each() {
        encoder.encode(&frame, &mut bytes).unwrap();
    }
    for step in [1, 2, 3, 7, 8, 64, 100_000] {
        assert_eq!(decode(&bytes, step).unwrap(), some_of_each(), "step {step}");
    }
}

#[test]
fn data_longer_than_a_frame_is_cut_and_ends_once() {
    let mut bytes = Vec::new();
    let sent = vec![7; MAX_FRAME + 5];
    let frame = Frame::Data {
        id: 5,
        fin: true,
        bytes: sent.clone(),
    };
    Encoder::default().encode(&frame, &mut bytes).unwrap();
    let mut got = Vec::new();
    let mut ends = Vec::new();
    for frame in decode(&bytes, 65536).unwrap() {
        let Frame::Data { id: 5, fin, bytes } = frame else {
            panic!("{frame:?}");
        };
        got.extend_from_slice(&bytes);
        ends.push(fin);
    }
    assert_eq!(got, sent);
    assert_eq!(ends, [false, true]);
}

#[test]
fn what_a_peer_must_not_send_is_an_error_and_never_a_panic() {
    assert_eq!(
        decode(&[0x80, 2, 0, 1, 0, 0, 0, 0], 8),
        Err(Error::Version(2))
    );
    assert_eq!(
        decode(&[0x80, 3, 0, 3, 0, 0, 0, 2, 0, 0], 10),
        Err(Error::TooShort(3))
    );
    assert_eq!(
        decode(&[0, 0, 0, 1, 0, 255, 255, 255], 8),
        Err(Error::TooLong(0xff_ffff))
    );
    let unknown = [0x80, 3, 0, 99, 0, 0, 0, 1, 42];
    assert_eq!(decode(&unknown, 9), Ok(Vec::new()));
    // Every one-byte change of a good conversation: an answer or an error, within bounds.
    let mut encoder = Encoder::default();
    let mut bytes = Vec::new();
    for frame in some_of_each() {
        encoder.encode(&frame, &mut bytes).unwrap();
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut broken = bytes.clone();
            broken[at] ^= 1 << bit;
            let _ = decode(&broken, 13);
        }
    }
}

#[test]
fn a_stream_opened_by_spdystream_is_understood() {
    // Captured from moby/spdystream 0.5: SYN_STREAM of stream 1 with streamtype error.
    let captured = include_bytes!("testdata/syn_stream.bin");
    let frames = decode(captured, 5).unwrap();
    let Some(Frame::SynStream { id: 1, headers, .. }) = frames.first() else {
        panic!("{frames:?}");
    };
    assert!(
        headers
            .iter()
            .any(|(name, value)| name == "streamtype" && value == "error")
    );
}
