//! The WebSocket subprotocols of exec and attach: how a message names its channel, and how the last
//! word is put. Source: k8s.io/streaming/pkg/httpstream/wsstream, k8s.io/cri-streaming remotecommand.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio_tungstenite::tungstenite::Message;

use super::status::Status;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subprotocol {
    /// Empty: the caller named none, and none is named in the answer.
    pub name: &'static str,
    /// Messages are text: the channel as a digit, then the content in base64. Else the first byte
    /// is the channel.
    is_base64: bool,
    /// The error stream ends in a `v1.Status`. Before v4 it has plain text, and only of a failure.
    has_status: bool,
}

const fn subprotocol(name: &'static str, is_base64: bool, has_status: bool) -> Subprotocol {
    Subprotocol {
        name,
        is_base64,
        has_status,
    }
}

/// Best first.
pub const ALL: &[Subprotocol] = &[
    subprotocol("v5.channel.k8s.io", false, true),
    subprotocol("v4.channel.k8s.io", false, true),
    subprotocol("v4.base64.channel.k8s.io", true, true),
    subprotocol("channel.k8s.io", false, false),
    subprotocol("base64.channel.k8s.io", true, false),
];

/// For callers that name none.
pub const UNNAMED: Subprotocol = subprotocol("", false, false);

impl Subprotocol {
    pub fn encode(self, channel: u8, content: &[u8]) -> Message {
        if self.is_base64 {
            let text = format!("{channel}{}", STANDARD.encode(content));
            return Message::Text(text.into());
        }
        let mut bytes = Vec::with_capacity(1 + content.len());
        bytes.push(channel);
        bytes.extend_from_slice(content);
        Message::Binary(bytes.into())
    }

    /// Channel and content; none of an empty message, or of one that isn't base64 where it should be.
    pub fn decode(self, mut message: Bytes) -> Option<(u8, Bytes)> {
        let first = *message.first()?;
        let content = message.split_off(1);
        if self.is_base64 {
            let content = STANDARD.decode(content).ok()?;
            return Some((first.checked_sub(b'0')?, content.into()));
        }
        Some((first, content))
    }

    /// What the error stream is told of the end; nothing at all where success goes without saying.
    pub fn last_word(self, status: &Status) -> Option<Vec<u8>> {
        match status {
            _ if self.has_status => Some(status.to_json()),
            Status::Exited(0) => None,
            failed => Some(failed.message().into_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Subprotocol {
        *ALL.iter().find(|known| known.name == name).expect(name)
    }

    #[test]
    fn base64_messages_are_a_digit_and_text() {
        let base64 = named("base64.channel.k8s.io");
        assert_eq!(base64.encode(1, b"\n"), Message::Text("1Cg==".into()));
        let typed = Bytes::from_static(b"0Zm9vCgo=");
        assert_eq!(
            base64.decode(typed),
            Some((0, Bytes::from_static(b"foo\n\n")))
        );
        assert_eq!(base64.decode(Bytes::from_static(b"0*")), None);
        assert_eq!(base64.decode(Bytes::new()), None);
    }

    #[test]
    fn before_v4_success_is_silent_and_failure_plain_text() {
        let old = named("channel.k8s.io");
        assert_eq!(old.last_word(&Status::Exited(0)), None);
        let word = old.last_word(&Status::Exited(3)).expect("a word");
        assert_eq!(word, b"command terminated with non-zero exit code: 3");
        let v4 = named("v4.base64.channel.k8s.io").last_word(&Status::Exited(0));
        assert_eq!(v4, Some(Status::Exited(0).to_json()));
    }
}
