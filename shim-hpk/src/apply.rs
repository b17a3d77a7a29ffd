//! Doing what was planned.
//!
//! - [`ask`] – programs that are asked something. [`gpu`] – what of a GPU's driver is out here.
//! - [`channel`] – the shim's end of the socket to `hpk-pause`.
//! - [`helped`] – mounts that a helper makes.
//! - [`launch`] – Apptainer, and through it the container's first program.
//! - [`enter`] – a further process in a container.
//! - [`hooks`] – the caller's programs at a container's beginning and end.
//! - [`outside`] – what the child does before it becomes Apptainer.
//! - [`programs`] – where `apptainer` and `hpk-pause` are.
//! - [`reaper`] – every child's end, the orphans' too.
//! - [`words`] – what Apptainer says.

pub mod ask;
pub mod channel;
pub mod enter;
pub mod gpu;
pub mod helped;
pub mod hooks;
pub mod launch;
pub mod outside;
pub mod programs;
pub mod reaper;
pub mod words;

use std::os::fd::OwnedFd;

use crate::apply::channel::Channel;

/// A process that is set up and waits for [`Channel::go`].
#[derive(Debug)]
pub struct Waiting {
    /// In the shim's PID namespace.
    pub pid: i32,
    pub exit: reaper::ExitReceiver,
    pub channel: Channel,
    /// Master of its terminal.
    pub terminal: Option<OwnedFd>,
}
