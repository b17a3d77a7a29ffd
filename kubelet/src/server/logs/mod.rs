//! A container's log: files in CRI format, written and rotated by `hpk-logger`.
//!
//! - [`options`] – what is asked for: /containerLogs' query, validated.
//! - [`entry`] – one line of a log file.
//! - [`filter`] – entries to the text that the caller gets.
//! - [`files`] – the files of one log, oldest first, and where its last lines begin.
//! - [`follow`] – all of it, in pieces, to the end or on and on.

pub mod entry;
pub mod files;
pub mod filter;
pub mod follow;
pub mod options;
