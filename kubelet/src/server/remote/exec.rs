//! A process beside the container's own, its streams carried by FIFOs through the shim.
//!
//! # Guarantees
//!
//! - All output is sent before the exit code, however slowly the caller reads; what still holds the
//!   output open after the exit (a background child) is waited for no longer than [`LINGER`].
//! - When the caller goes, the process is killed; when anything fails, the FIFOs go.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hpk_shim_client::{ExecRequest, ExitStatus, Shim, Stdio};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::channels::{Channels, Output, Size};
use super::process::{self, exec_process};
use super::status::Status;
use super::wanted::Wanted;
use crate::server::access::Run;
use crate::text;

/// How long output may stay silent, still open, after the process's end.
const LINGER: Duration = Duration::from_secs(2);
/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long the shim may take to say that it let the exec go.
const DELETE_LIMIT: Duration = Duration::from_secs(10);

const SIGKILL: u32 = 9;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error("can't {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("can't {action}: {}", text::of_shim(.error))]
    Shim {
        action: &'static str,
        error: Box<hpk_shim_client::Error>,
    },
}

/// Runs `command` in the container and serves the caller until both are done.
pub async fn serve(
    run: Run,
    command: Vec<String>,
    wanted: Wanted,
    channels: Channels,
    dir: PathBuf,
) {
    let output = channels.output.clone();
    let status = match exec(&run, &command, wanted, channels, &dir).await {
        Ok(exit) => Status::Exited(exit.code),
        Err(error) => {
            let why = text::chain(&error);
            Status::Failed(format!("error executing command in container: {why}"))
        }
    };
    // A caller who has gone doesn't hear it.
    let _ = output.send(Output::End(status)).await;
}

/// FIFOs of one exec, in a folder of their own that is removed with them.
struct Fifos {
    dir: PathBuf,
}

impl Fifos {
    fn create(parent: &Path, exec_id: &str, names: &[&str]) -> Result<Self, Error> {
        let dir = parent.join(exec_id);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(file("create", &dir))?;
        let fifos = Self { dir };
        for name in names {
            let path = fifos.dir.join(name);
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
                .map_err(|errno| file("create", &path)(errno.into()))?;
        }
        Ok(fifos)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::debug!(%error, dir = %self.dir.display(), "can't remove an exec's FIFOs");
        }
    }
}

fn shim_error(action: &'static str) -> impl FnOnce(hpk_shim_client::Error) -> Error {
    move |error| Error::Shim {
        action,
        error: Box::new(error),
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source,
    }
}

/// Unique on this node over the kubelet's restarts.
fn fresh_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("exec-{:x}-{count:x}", now.as_nanos())
}

async fn exec(
    run: &Run,
    command: &[String],
    wanted: Wanted,
    channels: Channels,
    dir: &Path,
) -> Result<ExitStatus, Error> {
    let process = exec_process(&run.bundle, command, wanted.tty)?;
    let exec_id = fresh_id();
    let names: Vec<&str> = [
        (wanted.stdin, "stdin"),
        (wanted.stdout, "stdout"),
        (wanted.stderr, "stderr"),
    ]
    .into_iter()
    .filter_map(|(is_wanted, name)| is_wanted.then_some(name))
    .collect();
    let fifos = Fifos::create(dir, &exec_id, &names)?;
    let path = |name| {
        if names.contains(&name) {
            fifos.path(name).to_string_lossy().into_owned()
        } else {
            String::new()
        }
    };
    let stdio = Stdio {
        stdin: path("stdin"),
        stdout: path("stdout"),
        stderr: path("stderr"),
        terminal: wanted.tty,
    };
    let shim = Shim::connect(&run.shim_address)
        .await
        .map_err(shim_error("reach the container's shim"))?;
    let exited = CancellationToken::new();
    let mut pumps = Vec::new();
    let mut pump = |name, wrap: fn(Bytes) -> Output| -> Result<(), Error> {
        let path = fifos.path(name);
        // Open for both until the exit: no end-of-file before the shim has opened it.
        let reader = open_receiver(&path, true)?;
        let output = channels.output.clone();
        pumps.push(tokio::spawn(pump_out(
            path,
            reader,
            output,
            wrap,
            exited.clone(),
        )));
        Ok(())
    };
    if wanted.stdout {
        pump("stdout", Output::Stdout)?;
    }
    if wanted.stderr {
        pump("stderr", Output::Stderr)?;
    }
    let stdin = if wanted.stdin {
        let path = fifos.path("stdin");
        let sender = pipe::OpenOptions::new()
            .read_write(true)
            .open_sender(&path)
            .map_err(file("open", &path))?;
        Some(sender)
    } else {
        None
    };
    let request = ExecRequest {
        id: run.id.clone(),
        exec_id: exec_id.clone(),
        process,
        stdio,
    };
    let outcome = match shim.exec(request).await {
        Ok(()) => {
            attend(
                &shim,
                &run.id,
                &exec_id,
                stdin,
                &channels.resize,
                channels.stdin,
                &channels.gone,
            )
            .await
        }
        Err(source) => Err(shim_error("add a process to the container")(source)),
    };
    exited.cancel();
    finish_pumps(pumps, &channels.gone).await;
    // The caller needn't wait for it.
    tokio::spawn(let_go(shim, run.id.clone(), exec_id, fifos));
    outcome
}

/// Has the shim forget the exec, then removes its FIFOs.
async fn let_go(shim: Shim, id: String, exec_id: String, fifos: Fifos) {
    match timeout(DELETE_LIMIT, shim.delete(&id, &exec_id)).await {
        // One that never came to be isn't there either.
        Ok(Err(error)) if !error.is_not_found() => {
            tracing::debug!(
                error = text::of_shim(&error),
                exec_id,
                "can't delete an exec"
            );
        }
        Err(_) => tracing::warn!(exec_id, "the shim does not let go of an exec"),
        Ok(_) => {}
    }
    drop(fifos);
}

/// Starts the process and sees it to its end.
async fn attend(
    shim: &Shim,
    id: &str,
    exec_id: &str,
    stdin: Option<pipe::Sender>,
    resize: &watch::Receiver<Option<Size>>,
    input: mpsc::Receiver<Bytes>,
    gone: &CancellationToken,
) -> Result<ExitStatus, Error> {
    shim.start_task(id, exec_id)
        .await
        .map_err(shim_error("start the command"))?;
    let feed = stdin.map(|fifo| {
        let (shim, id, exec_id) = (shim.clone(), id.to_owned(), exec_id.to_owned());
        tokio::spawn(async move {
            pump_in(fifo, input).await;
            // Fails when the process has ended by itself.
            if let Err(error) = shim.close_io(&id, &exec_id).await {
                tracing::debug!(error = text::of_shim(&error), "can't close an exec's stdin");
            }
        })
    });
    let mut resize = resize.clone();
    resize.mark_changed();
    let wait = shim.wait(id, exec_id);
    tokio::pin!(wait);
    let mut sizes_end = false;
    let exit = loop {
        tokio::select! {
            exit = &mut wait => break exit.map_err(shim_error("wait for the command")),
            changed = resize.changed(), if !sizes_end => {
                sizes_end = changed.is_err();
                let size = *resize.borrow_and_update();
                if let Some(Size { width, height }) = size
                    && let Err(error) = shim
                        .resize_pty(id, exec_id, width.into(), height.into())
                        .await
                {
                    tracing::debug!(error = text::of_shim(&error), "can't resize a terminal");
                }
            }
            () = gone.cancelled() => {
                if let Err(error) = shim.kill(id, exec_id, SIGKILL, false).await {
                    tracing::debug!(error = text::of_shim(&error), "can't kill an exec without a caller");
                }
                break match timeout(KILL_LIMIT, &mut wait).await {
                    Ok(exit) => exit.map_err(shim_error("wait for the command")),
                    Err(_) => Ok(ExitStatus { code: 128 + SIGKILL, at: SystemTime::now(), pid: 0 }),
                };
            }
        }
    };
    if let Some(feed) = feed {
        feed.abort();
    }
    exit
}

async fn finish_pumps(pumps: Vec<JoinHandle<()>>, gone: &CancellationToken) {
    for mut pump in pumps {
        tokio::select! {
            _ = &mut pump => {}
            // Nobody to send it to.
            () = gone.cancelled() => pump.abort(),
        }
    }
}

fn open_receiver(path: &Path, for_both: bool) -> Result<pipe::Receiver, Error> {
    pipe::OpenOptions::new()
        .read_write(for_both)
        .open_receiver(path)
        .map_err(file("open", path))
}

/// Until the caller's input ends, or nobody can read it any more.
async fn pump_in(mut fifo: pipe::Sender, mut input: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = input.recv().await {
        if let Err(error) = fifo.write_all(&bytes).await {
            tracing::debug!(%error, "can't write to an exec's stdin");
            return;
        }
    }
}

/// Until every writer has gone; after the exit, until that or a silence of [`LINGER`].
async fn pump_out(
    path: PathBuf,
    mut reader: pipe::Receiver,
    output: mpsc::Sender<Output>,
    wrap: fn(Bytes) -> Output,
    exited: CancellationToken,
) {
    let mut buffer = vec![0; 32 * 1024];
    let mut ending = false;
    loop {
        let read = if ending {
            match timeout(LINGER, reader.read(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => return,
            }
        } else {
            tokio::select! {
                biased;
                read = reader.read(&mut buffer) => read,
                () = exited.cancelled() => {
                    ending = true;
                    // From here on the end of the last writer is to be seen.
                    match open_receiver(&path, false) {
                        Ok(fresh) => reader = fresh,
                        Err(error) => tracing::debug!(%error, "can't open an exec's output again"),
                    }
                    continue;
                }
            }
        };
        match read {
            Ok(0) => return,
            Ok(count) => {
                let bytes = Bytes::copy_from_slice(&buffer[..count]);
                if output.send(wrap(bytes)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "can't read an exec's output");
                return;
            }
        }
    }
}
