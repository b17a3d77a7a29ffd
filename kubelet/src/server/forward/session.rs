//! The caller's pairs of SPDY streams: for each connection a data and an error stream, which name
//! the same `requestID` and `port`. A state machine without I/O.

use std::collections::HashMap;

use hpk_spdy::Frame;
use hpk_spdy::frame::{PROTOCOL_ERROR, REFUSED_STREAM};

/// Connections that may be open at once.
const MAX_PAIRS: usize = 512;

/// What a frame calls for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Send(Frame),
    /// Both streams are there.
    Connect(Pair),
    /// Bytes for the connection of this data stream.
    Data {
        id: u32,
        bytes: Vec<u8>,
    },
    /// No more bytes for it.
    DataEnd {
        id: u32,
    },
    /// The caller has given it up.
    Reset {
        id: u32,
    },
    /// The caller is done.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub data: u32,
    pub error: u32,
    pub port: u16,
}

#[derive(Debug, Default)]
struct Half {
    data: Option<u32>,
    error: Option<u32>,
    port: u16,
}

#[derive(Debug, Default)]
pub struct Session {
    /// Pairs that lack a stream, by request.
    halves: HashMap<String, Half>,
    /// Data streams with a connection.
    open: HashMap<u32, Pair>,
    last_id: u32,
}

impl Session {
    pub fn accept(&mut self, frame: Frame) -> Vec<Action> {
        match frame {
            Frame::SynStream { id, headers, .. } => self.open(id, &headers),
            Frame::Data { id, fin, bytes } if self.open.contains_key(&id) => {
                let mut actions = Vec::new();
                if !bytes.is_empty() {
                    actions.push(Action::Data { id, bytes });
                }
                if fin {
                    actions.push(Action::DataEnd { id });
                }
                actions
            }
            Frame::RstStream { id, .. } => {
                self.halves
                    .retain(|_, half| half.data != Some(id) && half.error != Some(id));
                match self.open.remove(&id) {
                    Some(_) => vec![Action::Reset { id }],
                    None => Vec::new(),
                }
            }
            // Even ids are answers to our own.
            Frame::Ping { id } if id % 2 == 1 => vec![Action::Send(Frame::Ping { id })],
            Frame::GoAway { .. } => vec![Action::Close],
            _ => Vec::new(),
        }
    }

    /// The connection of this data stream is over.
    pub fn forget(&mut self, id: u32) {
        self.open.remove(&id);
    }

    fn open(&mut self, id: u32, headers: &[(String, String)]) -> Vec<Action> {
        let reset = |status| vec![Action::Send(Frame::RstStream { id, status })];
        // A client's ids are odd and grow (draft 3.1, section 2.3.2).
        if id.is_multiple_of(2) || id <= self.last_id {
            return reset(PROTOCOL_ERROR);
        }
        self.last_id = id;
        let header = |name: &str| {
            headers
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.as_str())
        };
        let port = header("port").and_then(|port| port.parse::<u16>().ok());
        let Some(port) = port.filter(|port| *port > 0) else {
            return reset(REFUSED_STREAM);
        };
        if self.halves.len() + self.open.len() >= MAX_PAIRS {
            return reset(REFUSED_STREAM);
        }
        // Callers of old name no request: then the port is the request.
        let request = header("requestid").map_or_else(|| format!("port {port}"), str::to_owned);
        let half = self.halves.entry(request.clone()).or_insert(Half {
            port,
            ..Half::default()
        });
        let slot = match header("streamtype") {
            Some("data") => &mut half.data,
            Some("error") => &mut half.error,
            _ => return reset(REFUSED_STREAM),
        };
        if slot.is_some() || half.port != port {
            return reset(REFUSED_STREAM);
        }
        *slot = Some(id);
        let mut actions = vec![Action::Send(Frame::SynReply {
            id,
            fin: false,
            headers: Vec::new(),
        })];
        if let Half {
            data: Some(data),
            error: Some(error),
            port,
        } = *half
        {
            let pair = Pair { data, error, port };
            self.halves.remove(&request);
            self.open.insert(data, pair);
            actions.push(Action::Connect(pair));
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(session: &mut Session, id: u32, headers: &[(&str, &str)]) -> Vec<Action> {
        session.accept(Frame::SynStream {
            id,
            fin: false,
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        })
    }

    fn reply(id: u32) -> Action {
        Action::Send(Frame::SynReply {
            id,
            fin: false,
            headers: Vec::new(),
        })
    }

    fn refused(id: u32) -> Vec<Action> {
        let status = REFUSED_STREAM;
        vec![Action::Send(Frame::RstStream { id, status })]
    }

    #[test]
    fn a_pair_is_connected_when_both_streams_are_there() {
        let mut session = Session::default();
        let error = [("streamtype", "error"), ("port", "80"), ("requestid", "7")];
        let data = [("streamtype", "data"), ("port", "80"), ("requestid", "7")];
        assert_eq!(open(&mut session, 1, &error), [reply(1)]);
        let pair = Pair {
            data: 3,
            error: 1,
            port: 80,
        };
        assert_eq!(
            open(&mut session, 3, &data),
            [reply(3), Action::Connect(pair)]
        );
        let sent = Frame::Data {
            id: 3,
            fin: true,
            bytes: b"x".to_vec(),
        };
        assert_eq!(
            session.accept(sent.clone()),
            [
                Action::Data {
                    id: 3,
                    bytes: b"x".to_vec()
                },
                Action::DataEnd { id: 3 }
            ]
        );
        session.forget(3);
        assert_eq!(session.accept(sent), []);
    }

    #[test]
    fn streams_without_sense_are_refused() {
        let mut session = Session::default();
        for (id, headers) in [
            (1, [("streamtype", "data"), ("port", "0")]),
            (3, [("streamtype", "data"), ("port", "70000")]),
            (5, [("streamtype", "colour"), ("port", "80")]),
            (7, [("streamtype", "data"), ("host", "x")]),
        ] {
            assert_eq!(open(&mut session, id, &headers), refused(id), "{headers:?}");
        }
        let data = [("streamtype", "data"), ("port", "81"), ("requestid", "1")];
        assert_eq!(open(&mut session, 9, &data), [reply(9)]);
        assert_eq!(open(&mut session, 11, &data), refused(11));
    }

    #[test]
    fn a_reset_gives_the_connection_up() {
        let mut session = Session::default();
        for (id, kind) in [(1, "error"), (3, "data")] {
            open(&mut session, id, &[("streamtype", kind), ("port", "80")]);
        }
        let reset = Frame::RstStream { id: 3, status: 5 };
        assert_eq!(session.accept(reset.clone()), [Action::Reset { id: 3 }]);
        assert_eq!(session.accept(reset), []);
    }
}
