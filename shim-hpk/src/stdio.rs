//! A process's standard streams.
//!
//! Without a terminal the process gets the FIFOs, files and pipes themselves: nothing is copied,
//! and a dead shim loses no byte. The shim holds each FIFO's other end, so that its reader's or
//! writer's coming and going (a containerd restart) doesn't end or fail the process. With a terminal
//! the shim copies between its master and the FIFOs ([`crate::terminal`]).

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use crate::{
    apply::reaper::Reaper,
    error::Error,
    fifo::{self, is_fifo},
    logger::{Logger, Owner},
    terminal::{Output, Terminal},
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{Uid, fchown},
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
    sink: Option<Output>,
    terminal: Option<Terminal>,
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
            held.logger = Some(logger);
            held.sink = Some(Output::Pipe(out));
        } else if let Some(path) = stdio.stdout.strip_prefix("file://") {
            held.sink = Some(Output::File(open_log_file(path)?.into()));
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
    let stdout = open_output(&stdio.stdout, &mut held).await?;
    let stderr = if stdio.stderr == stdio.stdout && !stdio.stderr.is_empty() {
        stdout
            .try_clone()
            .map_err(Error::system("duplicate a descriptor"))?
    } else {
        open_output(&stdio.stderr, &mut held).await?
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
    pub async fn attach_terminal(&mut self, master: OwnedFd, stdio: &Stdio) -> Result<(), Error> {
        let failed = || Error::system::<io::Error>("connect the terminal");
        let (output, hold) = match self.sink.take() {
            Some(sink) => (sink, None),
            None if stdio.stdout.is_empty() => (Output::Nowhere, None),
            None => {
                let opened = fifo::open_output(&stdio.stdout).await;
                let fifo = opened.map_err(open_failed(&stdio.stdout))?;
                (Output::Pipe(fifo.end.into()), Some(fifo.hold))
            }
        };
        let input = Some(stdio.stdin.as_str()).filter(|path| !path.is_empty());
        let mut terminal = Terminal::start(master, output, hold, input).map_err(failed())?;
        if self.stdin_closed {
            terminal.close_input();
        }
        self.terminal = Some(terminal);
        Ok(())
    }

    /// Sets the terminal's size in characters; false without a terminal.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<bool> {
        match &self.terminal {
            Some(terminal) => terminal.resize(columns, rows).map(|()| true),
            None => Ok(false),
        }
    }

    /// Lets go of stdin: with the caller's end closed too, the process reads end-of-file.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
        self.stdin_closed = true;
        if let Some(terminal) = &mut self.terminal {
            terminal.close_input();
        }
    }

    /// The process has ended: the logger may end too.
    pub fn process_ended(&mut self) {
        if let Some(logger) = &self.logger {
            logger.process_ended();
        }
    }

    /// Lets the terminal's copy and the logger finish, within limits.
    pub async fn close(mut self) {
        if let Some(terminal) = self.terminal.take() {
            terminal.close().await;
        }
        if let Some(logger) = self.logger.take() {
            logger.finish().await;
        }
    }
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
        if !is_fifo(path) {
            return Ok((File::open(path)?, None));
        }
        let fifo = fifo::open_input(path)?;
        make_blocking(&fifo.end)?;
        Ok((fifo.end, Some(fifo.hold)))
    };
    let (input, hold) = open().map_err(open_failed(path))?;
    held.stdin = hold;
    Ok(input.into())
}

async fn open_output(path: &str, held: &mut Held) -> Result<OwnedFd, Error> {
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
    let fifo = fifo::open_output(path).await.map_err(open_failed(path))?;
    make_blocking(&fifo.end).map_err(open_failed(path))?;
    held.outputs.push(fifo.hold);
    Ok(fifo.end.into())
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
