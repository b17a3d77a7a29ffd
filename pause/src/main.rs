//! `hpk-pause`: the sandbox's PID 1, and the first program of every container (see the library's
//! page). Single-threaded throughout: `setns` into PID namespaces and `fork` depend on it.
//!
//! Layout:
//! - [`sandbox`] – PID 1: reap, end on a signal.
//! - [`first`] – `init` and `enter`: the conversation with the shim.
//! - [`files`] – mounts, devices, masked paths.
//! - [`process`] – credentials, limits, terminal, exec.
//! - [`error`] – a step that failed.

mod error;
mod files;
mod first;
mod process;
mod sandbox;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] => sandbox::run(),
        ["--version" | "-v"] => {
            println!("hpk-pause {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["init", socket] => first::run(first::Mode::Init, socket),
        ["enter", socket] => first::run(first::Mode::Enter, socket),
        _ => {
            eprintln!("usage: hpk-pause [--version]   (init FD and enter FD are for the shim)");
            ExitCode::from(2)
        }
    }
}
