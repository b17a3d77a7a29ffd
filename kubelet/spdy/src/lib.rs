//! SPDY/3.1, the server's side of it, as far as Kubernetes uses it: bytes to frames and back. No
//! I/O, no tasks: [`Decoder`] is fed what was read, [`Encoder`] appends to what is to be written.
//!
//! - [`frame`] – the frames, and both directions' codecs.
//! - [`headers`] – header blocks: zlib with SPDY's dictionary, one stream per direction.
//! - [`dictionary`] – that dictionary.
//!
//! # Assumptions
//!
//! Windows are not enforced: the peer (the API server, by way of spdystream) neither updates nor
//! respects them. Back-pressure is TCP's: who doesn't read isn't written to.
//!
//! Source: "SPDY Protocol - Draft 3.1", sections 2.2 to 2.6.

pub mod dictionary;
pub mod frame;
pub mod headers;

pub use frame::{Decoder, Encoder, Error, Frame};
