//! A container's log: files in CRI format, written and rotated by `hpk-logger`, read by `hpk-logs`.
//!
//! - [`options`] – what is asked for: /containerLogs' query, validated.
//! - [`filter`] – entries to the text that the caller gets.
//! - [`follow`] – all of it, in pieces, to the end or on and on.

pub mod filter;
pub mod follow;
pub mod options;
