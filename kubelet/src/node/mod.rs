//! The node object: registered at the start, kept alive by a lease, its status told regularly.
//!
//! - `object`: what the node says of itself (pure)
//! - `observe`: what is read from the machine for that
//! - `register`: create or patch
//! - `heartbeat`: lease and status
//! - `configz`: how the kubelet is configured
//! - `standing`: what it can't give at present

pub mod configz;
pub mod heartbeat;
pub mod object;
pub mod observe;
pub mod register;
pub mod standing;
