//! containerd's `binary://` loggers: a program that reads the process's stdout at descriptor 3 and
//! stderr at 4, and closes 5 once it is ready. Query parameters become its arguments, `key value`.
//!
//! The shim keeps the pipes' reading ends, so a logger that dies is started again on the same pipes
//! and the process neither blocks nor loses what it had written but the logger not yet read.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::{Pid, pipe2},
};
use tokio::{io::AsyncReadExt, net::unix::pipe, task::JoinHandle};

use crate::{
    apply::reaper::{ExitReceiver, Reaper, ended},
    error::Error,
};

const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long a logger may take over what is in the pipes once the process has ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
const RESTART_DELAY: Duration = Duration::from_millis(200);

/// Whose logger it is; told to it by environment.
#[derive(Debug, Clone)]
pub struct Owner {
    pub namespace: String,
    pub id: String,
}

/// A logger at work.
#[derive(Debug)]
pub struct Logger {
    state: Arc<State>,
    supervisor: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    pid: AtomicI32,
    process_ended: AtomicBool,
}

/// The program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Invocation {
    program: PathBuf,
    arguments: Vec<String>,
}

struct Pipes {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Pipes {
    /// Whether nothing is in them and nobody is left who could write.
    fn are_over(&self) -> io::Result<bool> {
        let mut fds =
            [&self.stdout, &self.stderr].map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::ZERO)?;
        Ok(fds
            .iter()
            .all(|fd| fd.revents() == Some(PollFlags::POLLHUP)))
    }
}

impl Logger {
    /// Starts a logger; gives the ends the process writes to.
    pub async fn start(
        uri: &str,
        owner: &Owner,
        reaper: &Reaper,
    ) -> Result<(Self, OwnedFd, OwnedFd), Error> {
        let failed = |why: String| Error::Logger {
            uri: uri.to_owned(),
            why,
        };
        let invocation = parse(uri).map_err(|why| failed(why.to_owned()))?;
        let make = || pipe2(OFlag::O_CLOEXEC).map_err(Error::system("make a pipe"));
        let ((out_read, out_write), (err_read, err_write), (ready_read, ready_write)) =
            (make()?, make()?, make()?);
        let pipes = Pipes {
            stdout: out_read,
            stderr: err_read,
        };
        let (pid, exit) = spawn(&invocation, owner, &pipes, &ready_write, reaper)
            .map_err(|e| failed(e.to_string()))?;
        drop(ready_write);
        let mut ready =
            pipe::Receiver::from_owned_fd(ready_read).map_err(Error::system("watch a pipe"))?;
        let mut byte = [0];
        if tokio::time::timeout(READY_LIMIT, ready.read(&mut byte))
            .await
            .is_err()
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            return Err(failed(format!(
                "not ready within {} s",
                READY_LIMIT.as_secs()
            )));
        }
        if let Some(exit) = *exit.borrow() {
            return Err(failed(format!("it ended at once with code {}", exit.code)));
        }
        let state = Arc::new(State {
            pid: AtomicI32::new(pid),
            ..State::default()
        });
        let supervisor = tokio::spawn(supervise(
            invocation,
            owner.clone(),
            pipes,
            reaper.clone(),
            exit,
            Arc::clone(&state),
        ));
        Ok((Self { state, supervisor }, out_write, err_write))
    }

    /// From now on the logger's end is final.
    pub fn process_ended(&self) {
        self.state.process_ended.store(true, Ordering::Relaxed);
    }

    /// Waits until it has read everything; a logger that hangs is ended.
    pub async fn finish(self) {
        self.process_ended();
        let mut supervisor = self.supervisor;
        for (limit, signal) in [
            (DRAIN_LIMIT, Some(Signal::SIGTERM)),
            (Duration::from_secs(1), Some(Signal::SIGKILL)),
            (Duration::from_secs(1), None),
        ] {
            if tokio::time::timeout(limit, &mut supervisor).await.is_ok() {
                return;
            }
            let pid = self.state.pid.load(Ordering::Relaxed);
            if let Some(signal) = signal {
                log::warn!("logger {pid} does not end: {signal}");
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
        supervisor.abort();
    }
}

async fn supervise(
    invocation: Invocation,
    owner: Owner,
    pipes: Pipes,
    reaper: Reaper,
    mut exit: ExitReceiver,
    state: Arc<State>,
) {
    let mut last_chance = true;
    loop {
        let end = ended(exit).await;
        // It may be seen before the end of the process that had them, or that one has closed them and goes on.
        match pipes.are_over() {
            Ok(false) => {}
            Ok(true) => {
                if end.code != 0 {
                    log::warn!("logger of {} ended with code {}", owner.id, end.code);
                }
                return;
            }
            Err(e) => log::error!("logger of {}: looking at its pipes: {e}", owner.id),
        }
        if state.process_ended.load(Ordering::Relaxed) {
            // One that died over the last lines gets one more try at what it hadn't read.
            if end.code == 0 || !last_chance {
                return;
            }
            last_chance = false;
        }
        log::warn!(
            "logger of {} ended with code {}: starting it again",
            owner.id,
            end.code
        );
        tokio::time::sleep(RESTART_DELAY).await;
        loop {
            match File::options()
                .write(true)
                .open("/dev/null")
                .and_then(|null| spawn(&invocation, &owner, &pipes, &null.into(), &reaper))
            {
                Ok((pid, new_exit)) => {
                    state.pid.store(pid, Ordering::Relaxed);
                    exit = new_exit;
                    break;
                }
                Err(e) if state.process_ended.load(Ordering::Relaxed) => {
                    log::error!("logger of {}: {e}", owner.id);
                    return;
                }
                Err(e) => {
                    log::error!("logger of {}: {e}", owner.id);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

fn spawn(
    invocation: &Invocation,
    owner: &Owner,
    pipes: &Pipes,
    ready: &OwnedFd,
    reaper: &Reaper,
) -> io::Result<(i32, ExitReceiver)> {
    let mut command = Command::new(&invocation.program);
    command
        .args(&invocation.arguments)
        .env("CONTAINER_ID", &owner.id)
        .env("CONTAINER_NAMESPACE", &owner.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let fds: [RawFd; 3] = [
        pipes.stdout.as_raw_fd(),
        pipes.stderr.as_raw_fd(),
        ready.as_raw_fd(),
    ];
    // SAFETY: system calls with integers only.
    unsafe { command.pre_exec(move || place(fds)) };
    let child = command.spawn()?;
    let pid = child.id() as i32;
    Ok((pid, reaper.watch(pid)))
}

/// Puts the descriptors at 3, 4 and 5 in a forked child. They may be there already, in any order.
fn place(fds: [RawFd; 3]) -> io::Result<()> {
    let mut high = fds;
    for fd in &mut high {
        // SAFETY: integers only. First out of the way of all three targets …
        *fd = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 100) };
        if *fd < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (fd, target) in high.into_iter().zip(3..) {
        // SAFETY: … then into place; dup2 clears close-on-exec.
        if unsafe { libc::dup2(fd, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn parse(uri: &str) -> Result<Invocation, &'static str> {
    let rest = uri.strip_prefix("binary://").ok_or("not a binary:// URI")?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !path.starts_with('/') {
        return Err("the program's path must be absolute");
    }
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        arguments.push(decode(key, true)?);
        if !value.is_empty() {
            arguments.push(decode(value, true)?);
        }
    }
    Ok(Invocation {
        program: decode(path, false)?.into(),
        arguments,
    })
}

/// Undoes percent-encoding; in a query `+` is a space.
fn decode(text: &str, query: bool) -> Result<String, &'static str> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit(), digit());
                high.zip(low)
                    .map(|(h, l)| (h * 16 + l) as u8)
                    .ok_or("bad percent-encoding")?
            }
            b'+' if query => b' ',
            other => other,
        });
    }
    String::from_utf8(out).map_err(|_| "not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_parameters_become_arguments() {
        assert_eq!(
            parse("binary:///usr/bin/hpk-logger?path=/var/log/a%20b/0.log&max-size=10&flag")
                .unwrap(),
            Invocation {
                program: "/usr/bin/hpk-logger".into(),
                arguments: ["path", "/var/log/a b/0.log", "max-size", "10", "flag"]
                    .map(String::from)
                    .into(),
            }
        );
    }

    #[test]
    fn pipes_are_over_when_all_is_read_and_nobody_can_write() {
        let ((stdout, out), (stderr, err)) = (
            pipe2(OFlag::empty()).unwrap(),
            pipe2(OFlag::empty()).unwrap(),
        );
        let pipes = Pipes { stdout, stderr };
        assert!(!pipes.are_over().unwrap());
        nix::unistd::write(&err, b"!").unwrap();
        drop((out, err));
        assert!(!pipes.are_over().unwrap());
        nix::unistd::read(&pipes.stderr, &mut [0; 2]).unwrap();
        assert!(pipes.are_over().unwrap());
    }

    #[test]
    fn a_relative_or_malformed_uri_is_refused() {
        assert!(parse("binary://logger").is_err());
        assert!(parse("binary:///logger?a=%zz").is_err());
        assert!(parse("file:///x").is_err());
    }
}
