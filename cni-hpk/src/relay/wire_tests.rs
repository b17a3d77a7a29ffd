use proptest::prelude::*;
use serde_json::json;

use super::*;

/// `struct virtio_net_hdr` with any values, written apart from the codec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Header {
    flags: u8,
    segmentation: u8,
    /// Bytes of all the frame's headers.
    header_length: u16,
    /// Bytes of payload in each segment.
    segment_size: u16,
    /// Where the sum begins, bytes into the frame.
    checksum_start: u16,
    /// Where it is put, bytes after its start.
    checksum_offset: u16,
}

impl Header {
    /// Bytes.
    const SIZE: usize = 10;
    /// The checksum is to be finished.
    const NEEDS_CHECKSUM: u8 = 1;
    /// The checksum has been looked at and is right.
    const DATA_VALID: u8 = 2;
    const NOT_SEGMENTED: u8 = 0;
    const TCP4: u8 = 1;
    const TCP6: u8 = 4;
    const UDP: u8 = 5;
    /// Beside [`Self::TCP4`] or [`Self::TCP6`]: the flow has CWR set.
    const ECN: u8 = 0x80;

    /// The header in these bytes.
    fn parse(bytes: [u8; Self::SIZE]) -> Self {
        let [flags, segmentation, a, b, c, d, e, f, g, h] = bytes;
        Self {
            flags,
            segmentation,
            header_length: u16::from_ne_bytes([a, b]),
            segment_size: u16::from_ne_bytes([c, d]),
            checksum_start: u16::from_ne_bytes([e, f]),
            checksum_offset: u16::from_ne_bytes([g, h]),
        }
    }

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let [a, b] = self.header_length.to_ne_bytes();
        let [c, d] = self.segment_size.to_ne_bytes();
        let [e, f] = self.checksum_start.to_ne_bytes();
        let [g, h] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.segmentation, a, b, c, d, e, f, g, h]
    }
}

fn attachment() -> Attachment {
    Attachment {
        network: "hpk".to_owned(),
        container_id: "0123".to_owned(),
        ifname: "tap0".to_owned(),
    }
}

/// A frame of `length` bytes behind a header.
fn frame(header: Header, length: usize) -> Vec<u8> {
    let mut message = header.to_bytes().to_vec();
    message.resize(Header::SIZE + length, 0);
    message
}

fn super_frame() -> Header {
    Header {
        flags: Header::NEEDS_CHECKSUM,
        segmentation: Header::TCP4,
        header_length: 66,
        segment_size: 1398,
        checksum_start: 34,
        checksum_offset: 16,
    }
}

#[test]
fn requests_and_answers_are_read_as_they_were_written() {
    for request in [
        Request::Status,
        Request::Leave {
            attachment: attachment(),
        },
        Request::Join {
            attachment: attachment(),
            form: Form::Frames,
        },
        Request::Plugin(PluginRequest {
            command: PluginCommand::Gc,
            cni_version: "1.1.0".to_owned(),
            caller: "host".to_owned(),
            container_id: String::new(),
            ifname: String::new(),
            prev_result: Some(json!({"a": 1})),
            valid: vec![ValidAttachment {
                container_id: "c".to_owned(),
                ifname: "tap0".to_owned(),
            }],
        }),
    ] {
        let bytes = encode(&request).unwrap();
        assert_eq!(decode_request(&bytes).unwrap(), request);
    }
    let bytes = encode(&Answer::Added {
        attachment: attachment(),
        result: json!({}),
    })
    .unwrap();
    assert!(matches!(decode_answer(&bytes), Ok(Answer::Added { .. })));
}

#[test]
fn names_that_would_leave_their_folder_are_refused_by_name() {
    for (field, value) in [
        ("network", "../x"),
        ("containerId", "a/b"),
        ("containerId", ""),
        ("ifname", "a:b"),
        ("ifname", "sixteen-letters-"),
    ] {
        let mut request = json!({"op": "leave", "attachment": attachment()});
        request["attachment"][field] = value.into();
        let error = decode_request(request.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains(value), "{error}");
    }
}

#[test]
fn an_unknown_request_or_field_is_refused() {
    for text in [
        "",
        "{}",
        "[]",
        r#"{"op":"reboot"}"#,
        r#"{"op":"leave","attachment":{"network":"n","containerId":"c","ifname":"e"},"more":1}"#,
        r#"{"op":"join","attachment":{"network":"n","containerId":"c"}}"#,
    ] {
        assert!(decode_request(text.as_bytes()).is_err(), "{text}");
    }
    assert!(matches!(
        decode_request(&vec![b' '; MESSAGE + 1]),
        Err(WireError::TooLong(_))
    ));
}

#[test]
fn a_frame_with_a_header_that_points_into_it_is_taken() {
    for (header, length) in [
        (Header::default(), ETHERNET),
        (Header::default(), FRAME - Header::SIZE),
        (
            Header {
                flags: Header::DATA_VALID,
                ..Header::default()
            },
            100,
        ),
        (super_frame(), 40_000),
        (
            Header {
                segmentation: Header::UDP,
                ..super_frame()
            },
            9000,
        ),
        (
            Header {
                segmentation: Header::TCP6 | Header::ECN,
                ..super_frame()
            },
            9000,
        ),
    ] {
        check_frame(&frame(header, length)).unwrap();
    }
}

#[test]
fn a_frame_with_a_header_that_lies_is_refused() {
    let good = super_frame();
    for (header, length) in [
        (good, ETHERNET - 1),
        (good, FRAME - Header::SIZE + 1),
        (Header { flags: 8, ..good }, 100),
        (
            Header {
                checksum_start: 99,
                ..good
            },
            100,
        ),
        (
            Header {
                checksum_offset: u16::MAX,
                checksum_start: u16::MAX,
                ..good
            },
            100,
        ),
        (
            Header {
                segment_size: 0,
                ..good
            },
            100,
        ),
        (
            Header {
                header_length: 101,
                ..good
            },
            100,
        ),
        (
            Header {
                segmentation: 3,
                ..good
            },
            100,
        ),
        (
            Header {
                segmentation: Header::ECN,
                ..good
            },
            100,
        ),
    ] {
        check_frame(&frame(header, length)).unwrap_err();
    }
}

proptest! {
    #[test]
    fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_request(&bytes);
        let _ = decode_answer(&bytes);
        let _ = check_frame(&bytes);
    }

    /// What is let through points into the frame, whatever the header says.
    #[test]
    fn a_frame_let_through_keeps_within_itself(
        bytes in proptest::array::uniform10(any::<u8>()),
        small in any::<bool>(),
        length in 0_usize..3000,
    ) {
        let mut header = Header::parse(bytes);
        if small {
            header.flags &= 1;
            header.segmentation &= 0x85;
            header.checksum_start &= 0xff;
            header.checksum_offset &= 0xff;
            header.header_length &= 0xff;
        }
        let message = frame(header, length);
        if check_frame(&message).is_ok() {
            prop_assert!(length >= ETHERNET);
            if header.flags & Header::NEEDS_CHECKSUM != 0 {
                let end = usize::from(header.checksum_start) + usize::from(header.checksum_offset) + 2;
                prop_assert!(end <= length);
            }
            if header.segmentation != Header::NOT_SEGMENTED {
                prop_assert!(header.segment_size > 0);
                prop_assert!(usize::from(header.header_length) <= length);
            }
        }
    }

    #[test]
    fn any_attachment_with_valid_names_goes_over_the_wire(
        network in "[a-z0-9][a-zA-Z0-9_.-]{0,40}",
        container_id in "[a-z0-9][a-zA-Z0-9_.-]{0,80}",
        ifname in "[a-z][a-z0-9]{0,14}",
    ) {
        let request = Request::Join {
            attachment: Attachment { network, container_id, ifname },
            form: Form::Descriptor,
        };
        let bytes = encode(&request).unwrap();
        prop_assert_eq!(decode_request(&bytes).unwrap(), request);
    }
}
