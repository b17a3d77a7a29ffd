//! A process's terminal: its master's output goes to where stdout goes, a FIFO's content comes in.
//!
//! Not tokio's `copy` (and so not containerd-shim's): that drops what it has read but not yet written
//! when reading ends with an error, and EIO is how a terminal's output ends. Reads gather all there
//! is, up to 64 KiB (a terminal gives 4 at a time), so that bulk output costs few wake-ups.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use hpk_pause::sys;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

use crate::fifo;

/// How long a deleted process's output may take, where another process holds the terminal open or
/// nobody reads the FIFO. containerd's own shim allows the same.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
const BUFFER: usize = 64 << 10;

/// Where a terminal's output goes.
#[derive(Debug)]
pub enum Output {
    /// Nobody listens, but a full terminal would block the program.
    Nowhere,
    File(File),
    /// A pipe or FIFO, written to without blocking this thread.
    Pipe(OwnedFd),
}

/// A terminal that is being copied.
#[derive(Debug)]
pub struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
    output: JoinHandle<()>,
    input: Option<JoinHandle<()>>,
    /// A writing end of the input's FIFO, until CloseIO: its writers may come and go.
    hold: Option<File>,
    /// A reading end of the output's FIFO: its readers may come and go.
    _output_hold: Option<File>,
}

impl Terminal {
    /// Starts copying; `input` is a FIFO's path.
    pub fn start(
        master: OwnedFd,
        output: Output,
        output_hold: Option<File>,
        input: Option<&str>,
    ) -> io::Result<Self> {
        let master = Arc::new(watch(master)?);
        let output = match output {
            Output::Nowhere => tokio::spawn(copy_out(Arc::clone(&master), Sink::Nowhere)),
            Output::File(file) => tokio::spawn(copy_out(Arc::clone(&master), Sink::File(file))),
            Output::Pipe(pipe) => {
                tokio::spawn(copy_out(Arc::clone(&master), Sink::Pipe(watch(pipe)?)))
            }
        };
        let mut terminal = Self {
            master,
            output,
            input: None,
            hold: None,
            _output_hold: output_hold,
        };
        if let Some(path) = input {
            let input = fifo::open_input(path)?;
            terminal.hold = Some(input.hold);
            let fifo = watch(input.end.into())?;
            let master = Arc::clone(&terminal.master);
            terminal.input = Some(tokio::spawn(copy_in(fifo, master)));
        }
        Ok(terminal)
    }

    /// Sets the size in characters.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        sys::set_terminal_size(self.master.get_ref().as_fd(), columns, rows)
    }

    /// Lets the input end once its writers have gone.
    pub fn close_input(&mut self) {
        self.hold = None;
    }

    /// Lets the output finish, within limits.
    pub async fn close(mut self) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
        if tokio::time::timeout(DRAIN_LIMIT, &mut self.output)
            .await
            .is_err()
        {
            log::warn!("a terminal's output is cut off after {DRAIN_LIMIT:?}");
            self.output.abort();
        }
    }
}

fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: the AsyncFd owns the descriptor: it stays open and the same while it is registered.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

enum Sink {
    Nowhere,
    File(File),
    Pipe(AsyncFd<OwnedFd>),
}

async fn copy_out(master: Arc<AsyncFd<OwnedFd>>, mut sink: Sink) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let (filled, ended) = match fill(&master, &mut buffer).await {
            Ok(read) => read,
            Err(e) => return log::warn!("read a terminal's output: {e}"),
        };
        let bytes = &buffer[..filled];
        let written = match &mut sink {
            Sink::Nowhere => Ok(()),
            Sink::File(file) => file.write_all(bytes),
            Sink::Pipe(pipe) => write_all(pipe, bytes).await,
        };
        if let Err(e) = written {
            // Goes on: a program must not block because its log can't be written.
            log::warn!("write a terminal's output: {e}");
            sink = Sink::Nowhere;
        }
        if ended {
            return;
        }
    }
}

async fn copy_in(fifo: AsyncFd<OwnedFd>, master: Arc<AsyncFd<OwnedFd>>) {
    let mut buffer = vec![0; 4096];
    loop {
        let copied = match fill(&fifo, &mut buffer).await {
            Ok((filled, false)) => write_all(&master, &buffer[..filled]).await,
            Ok((filled, true)) => match write_all(&master, &buffer[..filled]).await {
                Ok(()) => return,
                failed => failed,
            },
            Err(e) => Err(e),
        };
        match copied {
            Ok(()) => {}
            // The program has closed its terminal.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => return,
            Err(e) => return log::warn!("copy a terminal's input: {e}"),
        }
    }
}

/// Reads what is there, at least something; tells whether it was the last.
async fn fill(from: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut filled = 0;
    from.async_io(Interest::READABLE, |fd| {
        while filled < buffer.len() {
            match nix::unistd::read(fd, &mut buffer[filled..]) {
                Ok(0) => return Ok((filled, true)),
                Ok(n) => filled += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if filled > 0 => break,
                // How a terminal says that nobody has it open any more.
                Err(Errno::EIO) => return Ok((filled, true)),
                Err(e) => return Err(e.into()),
            }
        }
        Ok((filled, false))
    })
    .await
}

async fn write_all(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = to
            .async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?))
            .await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn terminal() -> (OwnedFd, File) {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut raw = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
        nix::sys::termios::cfmakeraw(&mut raw);
        nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &raw).unwrap();
        (pty.master, pty.slave.into())
    }

    /// A pipe whose reader is slow, as the one that tokio's copy loses output to.
    #[tokio::test]
    async fn the_last_output_arrives_though_the_terminal_hangs_up_while_the_reader_is_behind() {
        let (master, mut slave) = terminal();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let terminal = Terminal::start(master, Output::Pipe(writer), None, None).unwrap();
        let program = tokio::task::spawn_blocking(move || {
            for n in 0..40_000 {
                write!(slave, "{n} ").unwrap();
            }
        });
        let sink = tokio::task::spawn_blocking(move || {
            let (mut reader, mut all, mut part) = (File::from(reader), Vec::new(), [0; 977]);
            loop {
                match reader.read(&mut part).unwrap() {
                    0 => return String::from_utf8(all).unwrap(),
                    n => all.extend_from_slice(&part[..n]),
                }
            }
        });
        program.await.unwrap();
        terminal.close().await;
        let text = sink.await.unwrap();
        assert!(
            text.ends_with("39998 39999 "),
            "{:?}",
            &text[text.len() - 20..]
        );
        assert_eq!(text.split_ascii_whitespace().count(), 40_000);
    }

    #[tokio::test]
    async fn input_outlives_its_writers_until_it_is_closed() {
        let (master, mut slave) = terminal();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stdin");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let path = path.to_str().unwrap();
        let mut terminal = Terminal::start(master, Output::Nowhere, None, Some(path)).unwrap();
        let mut got = [0; 3];
        for word in ["one", "two"] {
            let mut writer = File::options().write(true).open(path).unwrap();
            writer.write_all(word.as_bytes()).unwrap();
            drop(writer);
            let reading = tokio::task::spawn_blocking(move || {
                slave.read_exact(&mut got).unwrap();
                (slave, got)
            });
            (slave, got) = reading.await.unwrap();
            assert_eq!(got, word.as_bytes());
        }
        terminal.close_input();
        let input = terminal.input.take().unwrap();
        tokio::time::timeout(Duration::from_secs(5), input)
            .await
            .expect("the input ends")
            .unwrap();
    }
}
