//! Moves frames between a TAP and a UDP socket as VXLAN (RFC 7348), in user
//! space: the overlay's mode `host`. What a peer is, and who says so, is the
//! caller's business.
//!
//! Expected flow: sockets are opened where the hosts are, the TAP where the
//! pods are; each queue gets a thread each way, [`send::Sending::run`] and
//! [`receive::Receiving::run`], which end when a descriptor fails.
//!
//! Guarantees: frames of a flow keep their order; no memory is taken per
//! frame; what isn't a known peer's is dropped and counted.
//!
//! Assumptions: a little-endian 64-bit Linux, whose kernel and C library lay
//! out `struct msghdr` alike.
//!
//! Layout:
//! - [`codec`]: frames and datagrams as bytes
//! - [`tap`], [`socket`]: what the frames come from and go to
//! - [`send`], [`receive`]: the threads
//! - [`messages`]: many messages with one system call
//! - [`slice`]: when the threads run
//! - [`shared`], [`counters`]: what the threads share with others

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod codec;
pub mod counters;
pub mod messages;
pub mod receive;
pub mod send;
pub mod shared;
pub mod slice;
pub mod socket;
pub mod tap;
