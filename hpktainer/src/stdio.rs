//! Between the caller's terminal or pipes and a process of the container: FIFOs, raw mode, window size, signals.
//!
//! The copying threads block in system calls that nothing interrupts (a read of a terminal); they end with the process.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hpk_shim_client::{Shim, Stdio};
use nix::sys::stat::Mode;
use nix::sys::termios::{self, SetArg, Termios};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// How long output may still come after the process is gone (a descendant may keep the pipe open).
const DRAIN: Duration = Duration::from_secs(2);

/// The FIFOs of one process.
#[derive(Debug)]
pub struct Pipes {
    /// What the shim is told.
    pub stdio: Stdio,
}

/// The copying under way.
#[derive(Debug)]
pub struct Copying {
    outputs: Vec<oneshot::Receiver<()>>,
    /// Why output can't be passed on any more.
    failures: mpsc::UnboundedReceiver<io::Error>,
    /// Fires when the caller's stdin ends.
    pub input_end: Option<oneshot::Receiver<()>>,
    _raw: Option<RawMode>,
}

/// The caller's terminal in raw mode, until dropped.
#[derive(Debug)]
struct RawMode(Termios);

impl RawMode {
    fn enter() -> anyhow::Result<Self> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(&stdin).context("reading the terminal's mode")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)
            .context("setting the terminal to raw mode")?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that has gone needs no mode.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

impl Pipes {
    /// Makes FIFOs `PREFIX.stdin` and so on in `dir`, as many as it takes.
    pub fn make(
        dir: &Path,
        prefix: &str,
        interactive: bool,
        terminal: bool,
    ) -> anyhow::Result<Self> {
        if terminal && !io::stdin().is_terminal() {
            bail!("-t needs a terminal, and stdin is none (leave -t out)");
        }
        let fifo = |name: &str, wanted: bool| match wanted {
            true => fifo(dir, prefix, name),
            false => Ok(String::new()),
        };
        Ok(Self {
            stdio: Stdio {
                stdin: fifo("stdin", interactive)?,
                stdout: fifo("stdout", true)?,
                stderr: fifo("stderr", !terminal)?,
                terminal,
            },
        })
    }

    /// The FIFO `PREFIX.stdin` alone, if there is to be any input: what comes out goes elsewhere.
    pub fn of_input(dir: &Path, prefix: &str, interactive: bool) -> anyhow::Result<Self> {
        let stdin = match interactive {
            true => fifo(dir, prefix, "stdin")?,
            false => String::new(),
        };
        Ok(Self {
            stdio: Stdio {
                stdin,
                ..Stdio::default()
            },
        })
    }

    /// Starts copying; to be called before the shim opens its ends, since opening one waits for the other.
    pub fn connect(&self) -> anyhow::Result<Copying> {
        let raw = match self.stdio.terminal && !self.stdio.stdin.is_empty() {
            true => Some(RawMode::enter()?),
            false => None,
        };
        let mut outputs = Vec::new();
        let (failed, failures) = mpsc::unbounded_channel();
        for (path, stderr) in [(&self.stdio.stdout, false), (&self.stdio.stderr, true)] {
            if !path.is_empty() {
                outputs.push(spawn_output(path.into(), stderr, failed.clone()));
            }
        }
        let input = Some(&self.stdio.stdin).filter(|p| !p.is_empty());
        Ok(Copying {
            outputs,
            failures,
            input_end: input.map(|path| spawn_input(path.into())),
            _raw: raw,
        })
    }

    /// Removes the FIFOs.
    pub fn remove(&self) {
        for path in [&self.stdio.stdin, &self.stdio.stdout, &self.stdio.stderr] {
            if !path.is_empty() {
                // The whole folder goes with the container.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn fifo(dir: &Path, prefix: &str, name: &str) -> anyhow::Result<String> {
    let path = dir.join(format!("{prefix}.{name}"));
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
        .with_context(|| format!("making FIFO {}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}

impl Copying {
    /// Waits until all output has been passed on.
    ///
    /// # Errors
    /// What couldn't be passed on, unless it was because nobody wanted it any more.
    pub async fn drain(mut self) -> anyhow::Result<()> {
        let all = futures::future::join_all(self.outputs);
        // What comes later is a descendant's; docker doesn't wait for it either.
        let _ = tokio::time::timeout(DRAIN, all).await;
        match self.failures.try_recv() {
            Ok(error) => unwanted(error).map(drop),
            Err(_) => Ok(()),
        }
    }
}

/// The exit code of a program whose output nobody wants any more, as a shell tells it.
///
/// # Errors
/// Where it couldn't be passed on for another reason.
fn unwanted(error: io::Error) -> anyhow::Result<u32> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(128 + libc::SIGPIPE.unsigned_abs()),
        _ => Err(error).context("passing the program's output on"),
    }
}

/// Copies to the end. What can't be passed on is read all the same: the program must not hang in the middle of writing.
fn spawn_output(
    path: PathBuf,
    stderr: bool,
    failed: mpsc::UnboundedSender<io::Error>,
) -> oneshot::Receiver<()> {
    let (done, receiver) = oneshot::channel();
    thread::spawn(move || {
        let fail = |error: io::Error| {
            // The terminal has gone: SIGHUP tells of that, which gives the program time.
            if error.raw_os_error() != Some(libc::EIO) {
                // Nobody listens when the container was given up.
                let _ = failed.send(error);
            }
        };
        let copied = File::open(&path).and_then(|mut from| match stderr {
            true => pass_on(&mut from, &mut io::stderr(), fail),
            false => pass_on(&mut from, &mut io::stdout(), fail),
        });
        if let Err(error) = copied {
            tracing::debug!(path = %path.display(), %error, "output ended");
        }
        // Nobody waits any more when the container was given up.
        let _ = done.send(());
    });
    receiver
}

fn spawn_input(path: PathBuf) -> oneshot::Receiver<()> {
    let (done, receiver) = oneshot::channel();
    thread::spawn(move || {
        let copied = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut to| copy(&mut io::stdin(), &mut to));
        if let Err(error) = copied {
            tracing::debug!(path = %path.display(), %error, "input ended");
        }
        let _ = done.send(());
    });
    receiver
}

/// Copies at once whatever comes; once writing has failed, only reads.
fn pass_on(
    from: &mut impl io::Read,
    to: &mut impl io::Write,
    fail: impl FnOnce(io::Error),
) -> io::Result<()> {
    let mut fail = Some(fail);
    each_read(from, |bytes| {
        if fail.is_some()
            && let Err(error) = to.write_all(bytes).and_then(|()| to.flush())
            && let Some(fail) = fail.take()
        {
            fail(error);
        }
        Ok(())
    })
}

/// Copies at once whatever comes.
fn copy(from: &mut impl io::Read, to: &mut impl io::Write) -> io::Result<()> {
    each_read(from, |bytes| to.write_all(bytes).and_then(|()| to.flush()))
}

fn each_read(
    from: &mut impl io::Read,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = [0; 32 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => take(&buffer[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Signals that are passed on to the container.
#[derive(Debug)]
pub struct Signals {
    all: Vec<(u32, Signal)>,
    window: Signal,
}

impl Signals {
    /// Takes them over from their default action. One that the caller had us ignore, as nohup does, stays ignored.
    pub fn take() -> anyhow::Result<Self> {
        let ignored = ignored()?;
        let passed = [
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGUSR1,
            libc::SIGUSR2,
        ];
        let mut all = Vec::new();
        for number in passed {
            if ignored & (1 << (number - 1)) == 0 {
                all.push((number.unsigned_abs(), signal(SignalKind::from_raw(number))?));
            }
        }
        Ok(Self {
            all,
            window: signal(SignalKind::window_change())?,
        })
    }

    /// Any that would end a program.
    pub async fn any(&mut self) {
        while self.next().await.is_none() {}
    }

    /// The next one; none for a changed window.
    async fn next(&mut self) -> Option<u32> {
        if self.all.is_empty() {
            self.window.recv().await;
            return None;
        }
        let any = futures::future::select_all(self.all.iter_mut().map(|(number, signal)| {
            Box::pin(async {
                signal.recv().await;
                *number
            })
        }));
        tokio::select! {
            (number, _, _) = any => Some(number),
            _ = self.window.recv() => None,
        }
    }
}

/// The signals that this process ignores, the lowest bit for signal 1: proc_pid_status(5).
fn ignored() -> anyhow::Result<u64> {
    let status =
        std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .context("no SigIgn in /proc/self/status")?;
    u64::from_str_radix(set.trim(), 16)
        .with_context(|| format!("reading the signals that are ignored, {set:?}"))
}

/// Columns and rows of the caller's terminal.
fn window() -> Option<(u32, u32)> {
    let size = rustix::termios::tcgetwinsize(io::stdin()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// Serves a running process until it ends: signals, window size, end of input. Gives its exit code.
///
/// SIGHUP means that the caller's terminal is gone: the process is told, and killed if it stays. So is one that got SIGINT or
/// SIGTERM three times (a PID 1 ignores what it has no handler for). One whose output can't be passed on any more is killed
/// at once: SIGPIPE it can't get, since its shim holds the pipe open, and would ignore as PID 1.
pub async fn serve(
    shim: &Shim,
    id: &str,
    exec_id: &str,
    terminal: bool,
    copying: &mut Copying,
    signals: &mut Signals,
) -> anyhow::Result<u32> {
    const PATIENCE: Duration = Duration::from_secs(10);
    const ASKED_OFTEN: u32 = 3;
    let resize = async || {
        if let Some((columns, rows)) = window().filter(|_| terminal) {
            // The process may just have ended.
            let _ = shim.resize_pty(id, exec_id, columns, rows).await;
        }
    };
    resize().await;
    let exited = shim.wait(id, exec_id);
    tokio::pin!(exited);
    let mut input_end = copying.input_end.take();
    let (mut asked, mut deadline) = (0, None);
    let mut failure = None;
    loop {
        let input = async {
            match input_end.as_mut() {
                // The sender is never dropped before it has sent.
                Some(end) => drop(end.await),
                None => std::future::pending().await,
            }
        };
        let patience = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            exit = &mut exited => {
                let code = exit?.code;
                return failure.map_or(Ok(code), unwanted);
            }
            Some(error) = copying.failures.recv(), if failure.is_none() => {
                failure = Some(error);
                deadline = Some(tokio::time::Instant::now());
            }
            () = input => {
                input_end = None;
                let _ = shim.close_io(id, exec_id).await;
            }
            number = signals.next() => match number {
                None => resize().await,
                Some(number) => {
                    asked += u32::from(matches!(number.cast_signed(), libc::SIGINT | libc::SIGTERM));
                    let _ = shim.kill(id, exec_id, number, false).await;
                    if number == libc::SIGHUP.unsigned_abs() {
                        deadline = Some(tokio::time::Instant::now() + PATIENCE);
                    } else if asked >= ASKED_OFTEN {
                        deadline = Some(tokio::time::Instant::now());
                    }
                }
            },
            () = patience => {
                deadline = None;
                let _ = shim.kill(id, exec_id, libc::SIGKILL.unsigned_abs(), false).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_nobody_wants_is_told_once_and_read_to_its_end() {
        let mut from = io::Cursor::new(vec![b'y'; 100 << 10]);
        let mut failures = Vec::new();
        pass_on(&mut from, &mut Closed, |error| failures.push(error)).unwrap();
        assert_eq!(from.position(), 100 << 10);
        assert_eq!(unwanted(failures.pop().unwrap()).unwrap(), 141);
        assert!(unwanted(io::ErrorKind::StorageFull.into()).is_err());
    }
}
