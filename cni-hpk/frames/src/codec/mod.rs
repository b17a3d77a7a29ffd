//! Frames and datagrams as bytes, without I/O and without taking memory per
//! packet. Nothing here panics, whatever the bytes; the entries for fuzzing
//! are [`arrival::take`] with [`join::Joiner::finish`], and [`cut::prepare`]
//! with [`cut::Cut::write_headers`].
//!
//! Layout:
//! - [`table`]: which frame goes where, and which datagram is taken
//! - [`cut`]: one long frame into those that go over the wire
//! - [`batch`]: which datagrams make one message to the kernel
//! - [`arrival`]: received messages into frames
//! - [`join`], [`same_flow`]: frames of a flow into one long frame
//! - [`headers`], [`checksum`], [`virtio`]: what these stand on

pub mod arrival;
pub mod batch;
pub mod checksum;
pub mod cut;
pub mod headers;
pub mod join;
pub mod same_flow;
pub mod table;
pub mod virtio;

#[cfg(test)]
mod tests;
