//! Running a command inside a container, for probes and hooks: its exit code and what it printed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hpk_shim_client::{ExecRequest, Shim, Stdio};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::server::remote::process::{self, exec_process};

#[derive(Debug, Error)]
pub enum Error {
    #[error("can't {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error("command timed out after {}s", .0.as_secs())]
    TimedOut(Duration),
    #[error("can't run the command: {}", crate::text::of_shim(.0))]
    Shim(#[from] hpk_shim_client::Error),
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub code: u32,
    /// stdout and stderr as they came, at most 10 KiB.
    pub text: String,
}

const MAX_OUTPUT: usize = 10 * 1024;

/// A container that commands can be run in.
#[derive(Debug, Clone)]
pub struct Target {
    pub shim: Shim,
    pub id: String,
    pub bundle: PathBuf,
}

/// Runs `command` with the container's own environment, user and folder; kills it after `limit`.
pub async fn run(target: &Target, command: &[String], limit: Duration) -> Result<Output, Error> {
    let process = exec_process(&target.bundle, command, false)?;
    let exec_id = crate::ids::fresh()
        .map(|id| id[..16].to_owned())
        .map_err(|source| Error::File {
            action: "read",
            path: PathBuf::from("/dev/urandom"),
            source,
        })?;
    let fifo = target.bundle.join(format!("exec-{exec_id}"));
    let outcome = run_with_fifo(target, &exec_id, &fifo, process, limit).await;
    match fs::remove_file(&fifo) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(%error, "can't remove an exec's FIFO");
        }
        _ => {}
    }
    outcome
}

async fn run_with_fifo(
    target: &Target,
    exec_id: &str,
    fifo: &Path,
    process: Value,
    limit: Duration,
) -> Result<Output, Error> {
    let failed = |action: &'static str| {
        let path = fifo.to_owned();
        move |source: io::Error| Error::File {
            action,
            path,
            source,
        }
    };
    mkfifo(fifo, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| failed("create")(errno.into()))?;
    // Open for both: no end-of-file between the writers' opening and closing.
    let mut reader = pipe::OpenOptions::new()
        .read_write(true)
        .open_receiver(fifo)
        .map_err(failed("open"))?;
    let path = fifo.to_string_lossy().into_owned();
    let (shim, id) = (&target.shim, target.id.as_str());
    shim.exec(ExecRequest {
        id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        process,
        stdio: Stdio {
            stdout: path.clone(),
            stderr: path,
            ..Stdio::default()
        },
    })
    .await?;
    let mut text = Vec::new();
    let waited = tokio::time::timeout(limit, async {
        shim.start_task(id, exec_id).await?;
        let wait = shim.wait(id, exec_id);
        tokio::pin!(wait);
        let mut buffer = [0u8; 4096];
        loop {
            tokio::select! {
                exit = &mut wait => return exit,
                read = reader.read(&mut buffer) => match read {
                    Ok(count) => keep(&mut text, &buffer[..count]),
                    Err(_) => return wait.await,
                },
            }
        }
    })
    .await;
    let exit = match waited {
        Ok(exit) => exit.map_err(Error::from),
        Err(_) => {
            if let Err(error) = shim.kill(id, exec_id, 9, false).await {
                tracing::debug!(%error, "can't kill a command that took too long");
            }
            Err(Error::TimedOut(limit))
        }
    };
    // The shim lets an exec go only when its output has been passed on.
    if let Err(error) = shim.delete(id, exec_id).await {
        tracing::debug!(%error, "can't delete an exec");
    }
    let mut buffer = [0u8; 4096];
    while let Ok(count) = reader.try_read(&mut buffer) {
        if count == 0 {
            break;
        }
        keep(&mut text, &buffer[..count]);
    }
    Ok(Output {
        code: exit?.code,
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

fn keep(text: &mut Vec<u8>, more: &[u8]) {
    let room = MAX_OUTPUT.saturating_sub(text.len());
    text.extend_from_slice(&more[..more.len().min(room)]);
}
