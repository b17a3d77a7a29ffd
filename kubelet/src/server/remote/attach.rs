//! The container's own process: output from its log, from now on; input into its FIFO.
//!
//! A prompt, which has no newline, shows because a terminal's logger is told to write what it has
//! after a short silence (`partial-after`).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hpk_shim_client::Shim;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::channels::{Channels, Output};
use super::status::Status;
use super::wanted::Wanted;
use crate::server::access::{ContainerQuery, PodAccess, Run};
use crate::server::logs::follow::{self, Follower};
use crate::server::logs::options::{LogOptions, Streams};
use crate::text;
use hpk_logs::Stream;

/// How often the log is looked at: somebody may be typing.
const POLL: Duration = Duration::from_millis(20);

/// What a caller is attached to.
#[derive(Debug)]
pub struct Target {
    pub query: ContainerQuery,
    pub run: Run,
    /// The container has a terminal.
    pub tty: bool,
    /// The container's stdin ends with this caller's.
    pub stdin_once: bool,
}

/// Serves the caller until the container ends or the caller goes.
pub async fn serve(
    access: Arc<dyn PodAccess>,
    target: Target,
    wanted: Wanted,
    mut channels: Channels,
) {
    let Target {
        query,
        run,
        tty,
        stdin_once,
    } = target;
    let output = channels.output.clone();
    let mut follower = follower(access, query, run.clone(), wanted);
    // Before anything is typed: the answer to it must not come before we look.
    if let Err(error) = follower.begin().await {
        let _ = output.send(Output::End(unreadable(&error))).await;
        return;
    }
    if wanted.stdin
        && let Some(fifo) = run.stdin.clone()
    {
        let (_, nothing) = mpsc::channel(1);
        let input = std::mem::replace(&mut channels.stdin, nothing);
        let (gone, run) = (channels.gone.clone(), run.clone());
        tokio::spawn(async move {
            tokio::select! {
                fed = feed(&fifo, input) => if let Err(error) = fed {
                    tracing::debug!(%error, fifo = %fifo.display(), "can't write to a container's stdin");
                },
                () = gone.cancelled() => {}
            }
            if stdin_once {
                end_stdin(&run).await;
            }
        });
    }
    if tty {
        resize(&run, &channels);
    }
    let status = tokio::select! {
        status = follow(follower, wanted, &output) => status,
        () = channels.gone.cancelled() => return,
    };
    // A caller who has gone doesn't hear it.
    let _ = output.send(Output::End(status)).await;
}

async fn feed(fifo: &Path, mut input: mpsc::Receiver<Bytes>) -> io::Result<()> {
    // Open for both: no error while nobody reads.
    let mut fifo = pipe::OpenOptions::new()
        .read_write(true)
        .open_sender(fifo)?;
    while let Some(bytes) = input.recv().await {
        fifo.write_all(&bytes).await?;
    }
    Ok(())
}

async fn end_stdin(run: &Run) {
    let ended = async {
        Shim::connect(&run.shim_address)
            .await?
            .close_io(&run.id, "")
            .await
    };
    if let Err(error) = ended.await {
        tracing::debug!(%error, id = run.id, "can't close a container's stdin");
    }
}

/// Passes terminal sizes on for as long as there are any.
fn resize(run: &Run, channels: &Channels) {
    let (mut sizes, gone, run) = (channels.resize.clone(), channels.gone.clone(), run.clone());
    tokio::spawn(async move {
        let Ok(shim) = Shim::connect(&run.shim_address).await else {
            return;
        };
        sizes.mark_changed();
        loop {
            tokio::select! {
                changed = sizes.changed() => if changed.is_err() { return },
                () = gone.cancelled() => return,
            }
            let size = *sizes.borrow_and_update();
            if let Some(size) = size
                && let Err(error) = shim
                    .resize_pty(&run.id, "", size.width.into(), size.height.into())
                    .await
            {
                tracing::debug!(%error, "can't resize a container's terminal");
            }
        }
    });
}

fn follower(
    access: Arc<dyn PodAccess>,
    query: ContainerQuery,
    run: Run,
    wanted: Wanted,
) -> Follower {
    let options = LogOptions {
        follow: true,
        tail: Some(0),
        streams: Streams {
            stdout: wanted.stdout,
            stderr: wanted.stderr || wanted.tty,
        },
        ..LogOptions::default()
    };
    Follower::new(access, query, run, options).every(POLL)
}

fn unreadable(error: &follow::Error) -> Status {
    let why = text::chain(error);
    Status::Failed(format!("can't follow the container's output: {why}"))
}

async fn follow(mut follower: Follower, wanted: Wanted, output: &mpsc::Sender<Output>) -> Status {
    loop {
        match follower.next().await {
            Ok(Some(pieces)) => {
                for (stream, bytes) in pieces {
                    let piece = match stream {
                        Stream::Stderr if wanted.stderr => Output::Stderr(bytes),
                        _ => Output::Stdout(bytes),
                    };
                    if output.send(piece).await.is_err() {
                        return Status::Exited(0);
                    }
                }
            }
            Ok(None) => return Status::Exited(0),
            Err(error) => return unreadable(&error),
        }
    }
}
