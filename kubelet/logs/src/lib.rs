//! Reading what `hpk-logger` writes: a log in CRI format, of one file and those it was before its rotations.
//!
//! - [`entry`] – one line of a log file.
//! - [`files`] – the files of one log, oldest first, and where its last lines begin.
//! - [`reader`] – all of it in order, through rotations.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod entry;
pub mod files;
pub mod reader;

pub use entry::{Entry, Stream, parse};
pub use reader::{Reader, Step};
