//! Which SPDY stream is which, for one exec or attach: a state machine without I/O.
//!
//! The caller opens a stream per thing it wants, named by header `streamtype`, and waits for a reply
//! to each: error, stdin, stdout, stderr (not with a terminal), resize (only with one).

use super::channels::Size;
use super::wanted::Wanted;
use hpk_spdy::Frame;
use hpk_spdy::frame::{PROTOCOL_ERROR, REFUSED_STREAM};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Error,
    Stdin,
    Stdout,
    Stderr,
    Resize,
}

/// What a frame calls for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Send(Frame),
    Stdin(Vec<u8>),
    StdinEnd,
    Resize(Size),
    /// The caller is done.
    Close,
}

/// Ids of the streams that the caller opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    pub error: Option<u32>,
    pub stdin: Option<u32>,
    pub stdout: Option<u32>,
    pub stderr: Option<u32>,
    pub resize: Option<u32>,
}

/// Longest unfinished resize message kept, bytes.
const MAX_RESIZE: usize = 4096;

#[derive(Debug)]
pub struct Session {
    wanted: Wanted,
    pub streams: Streams,
    last_id: u32,
    stdin_ended: bool,
    resize_text: Vec<u8>,
}

impl Session {
    pub fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            streams: Streams::default(),
            last_id: 0,
            stdin_ended: false,
            resize_text: Vec::new(),
        }
    }

    /// Every stream that was asked for is there.
    pub fn is_complete(&self) -> bool {
        let Wanted {
            stdin,
            stdout,
            stderr,
            tty,
        } = self.wanted;
        let streams = &self.streams;
        streams.error.is_some()
            && streams.stdin.is_some() == stdin
            && streams.stdout.is_some() == stdout
            && streams.stderr.is_some() == stderr
            && streams.resize.is_some() == tty
    }

    pub fn accept(&mut self, frame: Frame) -> Vec<Action> {
        match frame {
            Frame::SynStream { id, fin, headers } => self.open(id, fin, &headers),
            Frame::Data { id, fin, bytes } => self.data(id, fin, bytes),
            Frame::RstStream { id, .. } if self.streams.stdin == Some(id) => self.end_stdin(),
            // Even ids are answers to our own.
            Frame::Ping { id } if id % 2 == 1 => vec![Action::Send(Frame::Ping { id })],
            Frame::GoAway { .. } => vec![Action::Close],
            _ => Vec::new(),
        }
    }

    fn slot(&mut self, role: Role) -> &mut Option<u32> {
        match role {
            Role::Error => &mut self.streams.error,
            Role::Stdin => &mut self.streams.stdin,
            Role::Stdout => &mut self.streams.stdout,
            Role::Stderr => &mut self.streams.stderr,
            Role::Resize => &mut self.streams.resize,
        }
    }

    fn is_wanted(&self, role: Role) -> bool {
        match role {
            Role::Error => true,
            Role::Stdin => self.wanted.stdin,
            Role::Stdout => self.wanted.stdout,
            Role::Stderr => self.wanted.stderr,
            Role::Resize => self.wanted.tty,
        }
    }

    fn open(&mut self, id: u32, fin: bool, headers: &[(String, String)]) -> Vec<Action> {
        let reset = |status| vec![Action::Send(Frame::RstStream { id, status })];
        // A client's ids are odd and grow (draft 3.1, section 2.3.2).
        if id.is_multiple_of(2) || id <= self.last_id {
            return reset(PROTOCOL_ERROR);
        }
        self.last_id = id;
        let kind = headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("streamtype"));
        let role = match kind.map(|(_, value)| value.as_str()) {
            Some("error") => Role::Error,
            Some("stdin") => Role::Stdin,
            Some("stdout") => Role::Stdout,
            Some("stderr") => Role::Stderr,
            Some("resize") => Role::Resize,
            _ => return reset(REFUSED_STREAM),
        };
        if !self.is_wanted(role) || self.slot(role).is_some() {
            return reset(REFUSED_STREAM);
        }
        *self.slot(role) = Some(id);
        let mut actions = vec![Action::Send(Frame::SynReply {
            id,
            fin: false,
            headers: Vec::new(),
        })];
        if fin && role == Role::Stdin {
            actions.extend(self.end_stdin());
        }
        actions
    }

    fn data(&mut self, id: u32, fin: bool, bytes: Vec<u8>) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.streams.stdin == Some(id) {
            if !bytes.is_empty() && !self.stdin_ended {
                actions.push(Action::Stdin(bytes));
            }
            if fin {
                actions.extend(self.end_stdin());
            }
        } else if self.streams.resize == Some(id) {
            self.resize_text.extend_from_slice(&bytes);
            let mut sizes = serde_json::Deserializer::from_slice(&self.resize_text).into_iter();
            while let Some(Ok(size)) = sizes.next() {
                actions.push(Action::Resize(size));
            }
            let read = sizes.byte_offset();
            self.resize_text.drain(..read);
            if self.resize_text.len() > MAX_RESIZE {
                self.resize_text.clear();
            }
        }
        actions
    }

    fn end_stdin(&mut self) -> Vec<Action> {
        if std::mem::replace(&mut self.stdin_ended, true) {
            return Vec::new();
        }
        vec![Action::StdinEnd]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMINAL: Wanted = Wanted {
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    };

    fn open(session: &mut Session, id: u32, kind: &str) -> Vec<Action> {
        session.accept(Frame::SynStream {
            id,
            fin: false,
            headers: vec![("streamtype".to_owned(), kind.to_owned())],
        })
    }

    fn reset(id: u32, status: u32) -> Vec<Action> {
        vec![Action::Send(Frame::RstStream { id, status })]
    }

    fn reply(id: u32) -> Vec<Action> {
        let headers = Vec::new();
        let fin = false;
        vec![Action::Send(Frame::SynReply { id, fin, headers })]
    }

    fn complete() -> Session {
        let mut session = Session::new(TERMINAL);
        for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "resize")] {
            assert!(!session.is_complete());
            assert_eq!(open(&mut session, id, kind), reply(id));
        }
        assert!(session.is_complete());
        session
    }

    #[test]
    fn streams_are_refused_that_were_not_asked_for_or_come_twice() {
        let mut session = complete();
        assert_eq!(open(&mut session, 9, "stderr"), reset(9, REFUSED_STREAM));
        assert_eq!(open(&mut session, 11, "stdout"), reset(11, REFUSED_STREAM));
        assert_eq!(open(&mut session, 13, "colour"), reset(13, REFUSED_STREAM));
        assert_eq!(open(&mut session, 13, "error"), reset(13, PROTOCOL_ERROR));
        assert_eq!(open(&mut session, 20, "error"), reset(20, PROTOCOL_ERROR));
    }

    #[test]
    fn stdin_ends_once() {
        let mut session = complete();
        let data = |fin, bytes: &[u8]| Frame::Data {
            id: 3,
            fin,
            bytes: bytes.to_vec(),
        };
        assert_eq!(
            session.accept(data(true, b"last")),
            [Action::Stdin(b"last".to_vec()), Action::StdinEnd]
        );
        assert_eq!(session.accept(data(true, b"later")), []);
        assert_eq!(session.accept(Frame::RstStream { id: 3, status: 5 }), []);
    }

    #[test]
    fn resizes_may_come_in_pieces_and_noise_is_dropped() {
        let mut session = complete();
        let mut data = |bytes: &[u8]| {
            session.accept(Frame::Data {
                id: 7,
                fin: false,
                bytes: bytes.to_vec(),
            })
        };
        let size = |width, height| Action::Resize(Size { width, height });
        assert_eq!(data(b"{\"Width\":80,\"Hei"), []);
        assert_eq!(
            data(b"ght\":24}\n{\"Width\":100,\"Height\":30}\n"),
            [size(80, 24), size(100, 30)]
        );
        assert_eq!(data(&[b'x'; 5000]), []);
        assert_eq!(data(b"{\"Width\":1,\"Height\":2}"), [size(1, 2)]);
    }

    #[test]
    fn only_the_peers_pings_are_answered() {
        let mut session = Session::new(TERMINAL);
        assert_eq!(
            session.accept(Frame::Ping { id: 5 }),
            [Action::Send(Frame::Ping { id: 5 })]
        );
        assert_eq!(session.accept(Frame::Ping { id: 2 }), []);
    }
}
