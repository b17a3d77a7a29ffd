//! `hpk-logger`: containerd's `binary://` logger that writes a container's output in CRI log format
//! and rotates it. One process per container, between the container's pipes and its log file, so
//! that neither the shim's nor the kubelet's death loses a line: it holds the pipes' read ends, the
//! container the write ends, and it ends when the last writer has gone.
//!
//! Layout:
//! - [`config`] – the arguments, as containerd makes them from the URI's query.
//! - [`lines`] – bytes to CRI lines: a state machine without I/O.
//! - [`sink`] – the log file: appending, rotation, a full disk.
//! - [`pump`] – reads both streams until both have ended.
//!
//! # Expected flow
//!
//! `binary:///usr/local/bin/hpk-logger?path=/var/log/pods/…/0.log&max-size=10485760&max-files=5`: the
//! shim runs `hpk-logger path … max-size … max-files …` with the container's stdout at fd 3, stderr
//! at fd 4, and a pipe at fd 5 that is closed here once everything is ready. `partial-after=20` is
//! for a terminal: 20 ms after the last output, the beginning of a line is written as partial.
//!
//! # Guarantees
//!
//! - What was read is written, whole lines at a time, before more is read.
//! - A file that can't be written (disk full, folder gone) never stops the container: lines are
//!   dropped and counted, and the count is written into the log as soon as it can be
//!   (`hpk-logger: 12 lines (3456 bytes) were dropped: …`, on stderr). Each new batch tries again.
//! - SIGTERM, SIGINT and SIGHUP don't end it (a shim sends one when the container is done): only
//!   the end of both streams does.
//!
//! # Errors
//!
//! Exit code 2 for arguments it doesn't understand, before it is ready; otherwise 0.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod lines;
mod pump;
mod sink;

use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    let config = match config::Config::parse(std::env::args_os().skip(1)) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("hpk-logger: {error}");
            return ExitCode::from(2);
        }
    };
    // Blocked, not handled: the only thread never takes them.
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    if let Err(error) = signals.thread_block() {
        eprintln!("hpk-logger: can't block signals: {error}");
    }
    let streams = pump::inherited();
    let partial_after = config.partial_after;
    let mut sink = sink::Sink::new(config);
    sink.open();
    if let Err(error) = pump::announce() {
        eprintln!("hpk-logger: can't say that it is ready: {error}");
    }
    pump::run(streams, partial_after, &mut sink);
    ExitCode::SUCCESS
}
