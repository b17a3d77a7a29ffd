//! `run -d`: hpktainer goes on in the background, waits for the container, and cleans up behind it.
//!
//! The background process is this program again, in a session of its own. It says on its stdout, a pipe, that the
//! container has started; what goes wrong before comes through its stderr.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use anyhow::Context as _;

const MARK: &str = "HPKTAINER_BACKGROUND";

/// Whether this is the background process.
pub fn is_background() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts this program again in the background and waits until the container runs; prints its id.
pub fn start_in_background() -> anyhow::Result<u8> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(MARK, "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("starting the background process")?;
    let mut id = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut id)
            .context("waiting for the background process")?;
    }
    if id.is_empty() {
        let status = child.wait().context("waiting for the background process")?;
        return Ok(u8::try_from(status.code().unwrap_or(125)).unwrap_or(125));
    }
    print!("{id}");
    Ok(0)
}

/// Tells the caller that the container runs, and leaves its terminal and session.
pub fn tell_started(id: &str) -> anyhow::Result<()> {
    println!("{id}");
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("opening /dev/null")?;
    nix::unistd::dup2_stdout(null.as_fd()).context("leaving stdout")?;
    nix::unistd::dup2_stderr(null.as_fd()).context("leaving stderr")?;
    // It fails only for the leader of a process group, which a child just started is not.
    nix::unistd::setsid().context("leaving the session")?;
    Ok(())
}
