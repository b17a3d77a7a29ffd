//! A process's standard streams.
//!
//! Without a terminal the process gets the FIFOs, files and pipes themselves: nothing is copied,
//! and a dead shim loses no byte. The shim holds each FIFO's other end, so that its reader's or
//! writer's coming and going (a containerd restart) doesn't end or fail the process. With a terminal
//! the shim copies between its master and the FIFOs.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::Path,
};

use containerd_shim::asynchronous::io::{IoTasks, Pty};
use hpk_pause::sys;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{Uid, fchown},
};
use tokio::io::AsyncWriteExt;

use crate::{
    apply::reaper::Reaper,
    error::Error,
    logger::{Logger, Owner},
};

/// Where the streams go, as the request says.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// What the shim keeps for a process until it is deleted.
#[derive(Default)]
pub struct Held {
    /// Writing end of stdin, until CloseIO.
    stdin: Option<File>,
    /// Reading ends of FIFOs.
    outputs: Vec<File>,
    logger: Option<Logger>,
    /// The terminal's output where it doesn't go to a FIFO.
    sink: Option<OwnedFd>,
    terminal: Option<Pty>,
    copies: IoTasks,
    sink_copy: Option<tokio::task::JoinHandle<()>>,
    stdin_closed: bool,
}

/// When stdin is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    Now,
    /// By [`Held::open_stdin`]; until then it is /dev/null. A caller's copy into the FIFO begins as
    /// soon as that has a reader, and ctr tells of its stdin's end (CloseIO) only once it knows the
    /// task: a FIFO open before Create is answered can make it miss that, and the program hang.
    AtStart,
}

/// Opens the streams: the process's own ends (none with a terminal), and what the shim keeps.
pub async fn open(
    stdio: &Stdio,
    when: Stdin,
    owner: &Owner,
    reaper: &Reaper,
) -> Result<(Vec<OwnedFd>, Held), Error> {
    let mut held = Held::default();
    if stdio.terminal {
        if stdio.stdout.starts_with("binary://") {
            let (logger, out, _err) = Logger::start(&stdio.stdout, owner, reaper).await?;
            (held.logger, held.sink) = (Some(logger), Some(out));
        } else if let Some(path) = stdio.stdout.strip_prefix("file://") {
            held.sink = Some(open_log_file(path)?);
        }
        return Ok((Vec::new(), held));
    }
    let stdin = match when {
        Stdin::Now => open_input(&stdio.stdin, &mut held)?,
        Stdin::AtStart => null(false)?,
    };
    if stdio.stdout.starts_with("binary://") {
        let (logger, out, err) = Logger::start(&stdio.stdout, owner, reaper).await?;
        held.logger = Some(logger);
        return Ok((vec![stdin, out, err], held));
    }
    let stdout = open_output(&stdio.stdout, &mut held)?;
    let stderr = if stdio.stderr == stdio.stdout && !stdio.stderr.is_empty() {
        stdout
            .try_clone()
            .map_err(Error::system("duplicate a descriptor"))?
    } else {
        open_output(&stdio.stderr, &mut held)?
    };
    Ok((vec![stdin, stdout, stderr], held))
}

impl Held {
    /// Opens a stdin that was left for the start, for a process of user `uid`.
    pub fn open_stdin(&mut self, stdio: &Stdio, uid: u32) -> Result<Option<OwnedFd>, Error> {
        if stdio.terminal || stdio.stdin.is_empty() {
            return Ok(None);
        }
        let input = open_input(&stdio.stdin, self)?;
        if is_fifo(&stdio.stdin) {
            // So that the program can reopen it as /dev/stdin; as in runc, not worth failing for.
            let _ = fchown(&input, Some(Uid::from_raw(uid)), None);
        }
        if self.stdin_closed {
            self.stdin = None;
        }
        Ok(Some(input))
    }

    /// Copies between the terminal and the streams from now on.
    pub fn attach_terminal(&mut self, master: OwnedFd, stdio: &Stdio) -> Result<(), Error> {
        let failed = || Error::system::<io::Error>("connect the terminal");
        let other = |e: containerd_shim::Error| io::Error::other(e.to_string());
        let pty = Pty::new(File::from(master))
            .map_err(other)
            .map_err(failed())?;
        if let Some(sink) = self.sink.take() {
            self.sink_copy = Some(tokio::spawn(copy_to(pty.clone(), sink)));
        } else if !stdio.stdout.is_empty() {
            self.copies
                .copy_to_fifo(pty.clone(), &stdio.stdout)
                .map_err(other)
                .map_err(failed())?;
        } else {
            // Nobody listens, but a full terminal would block the program.
            let sink = File::options()
                .write(true)
                .open("/dev/null")
                .map_err(failed())?;
            self.sink_copy = Some(tokio::spawn(copy_to(pty.clone(), sink.into())));
        }
        if !stdio.stdin.is_empty() {
            self.copies
                .copy_from_fifo(&stdio.stdin, pty.clone())
                .map_err(other)
                .map_err(failed())?;
            if self.stdin_closed {
                self.copies.close_input();
            }
        }
        self.terminal = Some(pty);
        Ok(())
    }

    /// Sets the terminal's size in characters; false without a terminal.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<bool> {
        match &self.terminal {
            Some(pty) => sys::set_terminal_size(pty.as_fd(), columns, rows).map(|()| true),
            None => Ok(false),
        }
    }

    /// Lets go of stdin: with the caller's end closed too, the process reads end-of-file.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
        self.stdin_closed = true;
        self.copies.close_input();
    }

    /// The process has ended: the logger may end too.
    pub fn process_ended(&mut self) {
        if let Some(logger) = &self.logger {
            logger.process_ended();
        }
    }

    /// Lets copies and logger finish, within limits.
    pub async fn close(mut self) {
        self.terminal = None;
        self.copies.shutdown().await;
        if let Some(copy) = self.sink_copy.take() {
            let abort = copy.abort_handle();
            if tokio::time::timeout(std::time::Duration::from_secs(5), copy)
                .await
                .is_err()
            {
                abort.abort();
            }
        }
        if let Some(logger) = self.logger.take() {
            logger.finish().await;
        }
    }
}

async fn copy_to(mut from: Pty, sink: OwnedFd) {
    let mut sink = tokio::fs::File::from_std(File::from(sink));
    // EIO is how a terminal says that nobody has it open any more.
    match tokio::io::copy(&mut from, &mut sink).await {
        Err(e) if e.raw_os_error() != Some(libc::EIO) => {
            log::warn!("copy a terminal's output: {e}")
        }
        _ => {}
    }
    let _ = sink.flush().await;
}

fn open_failed(path: &str) -> impl FnOnce(io::Error) -> Error {
    let path = Path::new(path).to_owned();
    move |source| Error::File {
        action: "open",
        path,
        source,
    }
}

fn null(write: bool) -> Result<OwnedFd, Error> {
    File::options()
        .read(!write)
        .write(write)
        .open("/dev/null")
        .map(OwnedFd::from)
        .map_err(open_failed("/dev/null"))
}

fn is_fifo(path: &str) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo())
}

/// O_NONBLOCK is for the open only: the process must block as on any pipe.
fn make_blocking(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
    Ok(())
}

fn open_input(path: &str, held: &mut Held) -> Result<OwnedFd, Error> {
    if path.is_empty() {
        return null(false);
    }
    let open = || -> io::Result<(File, Option<File>)> {
        let input = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        // With a reader there, opening for writing doesn't wait.
        let hold = is_fifo(path)
            .then(|| {
                OpenOptions::new()
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(path)
            })
            .transpose()?;
        make_blocking(&input)?;
        Ok((input, hold))
    };
    let (input, hold) = open().map_err(open_failed(path))?;
    held.stdin = hold;
    Ok(input.into())
}

fn open_output(path: &str, held: &mut Held) -> Result<OwnedFd, Error> {
    if path.is_empty() {
        return null(true);
    }
    if let Some(file) = path.strip_prefix("file://") {
        return open_log_file(file);
    }
    if path.contains("://") {
        let why = "not a FIFO, file:// or binary:// (both streams) URI".to_owned();
        return Err(Error::Logger {
            uri: path.to_owned(),
            why,
        });
    }
    if !is_fifo(path) {
        return open_log_file(path);
    }
    let open = || -> io::Result<(File, File)> {
        let hold = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let output = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        make_blocking(&output)?;
        Ok((output, hold))
    };
    let (output, hold) = open().map_err(open_failed(path))?;
    held.outputs.push(hold);
    Ok(output.into())
}

fn open_log_file(path: &str) -> Result<OwnedFd, Error> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
        .map(OwnedFd::from)
        .map_err(open_failed(path))
}
