//! Port-forward: connections of a caller to ports on a pod's loopback.
//!
//! - [`session`] – the caller's pairs of SPDY streams: a state machine without I/O.
//! - [`serve`] – drives it, and copies between streams and connections.
//! - [`netns`] – a connection made from within the pod's network namespace.

pub mod netns;
pub mod serve;
pub mod session;

pub use serve::serve;
