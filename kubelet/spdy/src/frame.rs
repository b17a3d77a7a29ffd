//! Frames: 8 bytes of head, then up to 16 MiB; the first bit tells control from data.

use crate::headers::{self, Deflater, Headers, Inflater};

/// Longest frame taken, bytes. spdystream writes what its caller writes, copies of 32 KiB.
const MAX_FRAME: usize = 1 << 20;

const FIN: u8 = 1;

/// Status codes of RST_STREAM.
pub const PROTOCOL_ERROR: u32 = 1;
pub const REFUSED_STREAM: u32 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        id: u32,
        status: u32,
    },
    Settings,
    Ping {
        id: u32,
    },
    GoAway {
        last: u32,
        status: u32,
    },
    Headers {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    Data {
        id: u32,
        fin: bool,
        bytes: Vec<u8>,
    },
}

/// A connection that can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("SPDY version {0}, not 3")]
    Version(u16),
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("a frame of type {0} is too short")]
    TooShort(u16),
    #[error("headers")]
    Headers(#[from] headers::Error),
}

/// Bytes to frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are decoded already.
    done: usize,
    inflater: Inflater,
}

impl Decoder {
    /// Takes what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.done);
        self.done = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one. Frames of unknown type are skipped. After an error
    /// the connection is of no use: header compression is out of step.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            let rest = &self.buffer[self.done..];
            let Some((head, rest)) = rest.split_first_chunk::<8>() else {
                return Ok(None);
            };
            let [a, b, c, d, flags, length @ ..] = *head;
            let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
            if length > MAX_FRAME {
                return Err(Error::TooLong(length));
            }
            let Some(body) = rest.get(..length) else {
                return Ok(None);
            };
            self.done += 8 + length;
            let fin = flags & FIN != 0;
            if a & 0x80 == 0 {
                return Ok(Some(Frame::Data {
                    id: u32::from_be_bytes([a, b, c, d]),
                    fin,
                    bytes: body.to_vec(),
                }));
            }
            let version = u16::from_be_bytes([a & 0x7f, b]);
            if version != 3 {
                return Err(Error::Version(version));
            }
            let kind = u16::from_be_bytes([c, d]);
            if let Some(frame) = control(kind, fin, body, &mut self.inflater)? {
                return Ok(Some(frame));
            }
        }
    }
}

fn control(
    kind: u16,
    fin: bool,
    body: &[u8],
    inflater: &mut Inflater,
) -> Result<Option<Frame>, Error> {
    let number = |at: usize| {
        body.get(at..at + 4)
            .and_then(|four| four.try_into().ok())
            .map(u32::from_be_bytes)
            .ok_or(Error::TooShort(kind))
    };
    let id = |at: usize| number(at).map(|id| id & 0x7fff_ffff);
    let mut block = |at: usize| {
        let block = body.get(at..).ok_or(Error::TooShort(kind))?;
        inflater.block(block).map_err(Error::from)
    };
    Ok(Some(match kind {
        1 => Frame::SynStream {
            id: id(0)?,
            fin,
            // After it: associated stream, priority, slot.
            headers: block(10)?,
        },
        2 => Frame::SynReply {
            id: id(0)?,
            fin,
            headers: block(4)?,
        },
        3 => Frame::RstStream {
            id: id(0)?,
            status: number(4)?,
        },
        4 => Frame::Settings,
        6 => Frame::Ping { id: number(0)? },
        7 => Frame::GoAway {
            last: id(0)?,
            status: number(4)?,
        },
        8 => Frame::Headers {
            id: id(0)?,
            fin,
            headers: block(4)?,
        },
        9 => Frame::WindowUpdate {
            id: id(0)?,
            delta: id(4)?,
        },
        _ => return Ok(None),
    }))
}

/// Frames to bytes.
#[derive(Debug, Default)]
pub struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    /// Appends `frame` to `out`.
    pub fn encode(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), Error> {
        match frame {
            Frame::Data { id, fin, bytes } => data(*id, *fin, bytes, out),
            Frame::SynStream { id, fin, headers } => {
                let mut body = id.to_be_bytes().to_vec();
                body.extend_from_slice(&[0; 6]);
                self.deflater.block(headers, &mut body)?;
                put(1, *fin, &body, out);
            }
            Frame::SynReply { id, fin, headers } => {
                let mut body = id.to_be_bytes().to_vec();
                self.deflater.block(headers, &mut body)?;
                put(2, *fin, &body, out);
            }
            Frame::RstStream { id, status } => put(3, false, &pair(*id, *status), out),
            Frame::Settings => put(4, false, &[0; 4], out),
            Frame::Ping { id } => put(6, false, &id.to_be_bytes(), out),
            Frame::GoAway { last, status } => put(7, false, &pair(*last, *status), out),
            Frame::Headers { id, fin, headers } => {
                let mut body = id.to_be_bytes().to_vec();
                self.deflater.block(headers, &mut body)?;
                put(8, *fin, &body, out);
            }
            Frame::WindowUpdate { id, delta } => put(9, false, &pair(*id, *delta), out),
        }
        Ok(())
    }
}

fn pair(first: u32, second: u32) -> [u8; 8] {
    let mut both = [0; 8];
    both[..4].copy_from_slice(&first.to_be_bytes());
    both[4..].copy_from_slice(&second.to_be_bytes());
    both
}

/// Head and body of a control frame. Bodies made here are far below the limit of 24 bits.
fn put(kind: u16, fin: bool, body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x80, 3]);
    out.extend_from_slice(&kind.to_be_bytes());
    length(fin, body.len(), out);
    out.extend_from_slice(body);
}

/// Appends data, cut to frames that peers take.
fn data(id: u32, fin: bool, bytes: &[u8], out: &mut Vec<u8>) {
    let mut chunks = bytes.chunks(MAX_FRAME);
    let mut chunk = chunks.next().unwrap_or_default();
    loop {
        let next = chunks.next();
        out.extend_from_slice(&id.to_be_bytes());
        length(fin && next.is_none(), chunk.len(), out);
        out.extend_from_slice(chunk);
        match next {
            Some(more) => chunk = more,
            None => return,
        }
    }
}

fn length(fin: bool, length: usize, out: &mut Vec<u8>) {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&[u8::from(fin), length[1], length[2], length[3]]);
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
