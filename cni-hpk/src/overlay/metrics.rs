//! Serves the counters over HTTP on a UNIX socket that only its owner reaches:
//! `curl --unix-socket /run/hpk/overlay.sock http://localhost/metrics`.
//!
//! The whole of HTTP that this takes: whatever is asked gets the counters, and
//! the connection's end is the answer's.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tracing::debug;

use super::error::Error;
use super::host::statistics::Statistics;

/// A reader that is slower is let go.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest request, bytes.
const REQUEST: usize = 8 << 10;

#[derive(Debug)]
pub struct Endpoint {
    listener: UnixListener,
    statistics: Statistics,
}

impl Endpoint {
    /// Listens at `path`, in place of a former daemon.
    pub fn open(path: PathBuf, statistics: Statistics) -> Result<Self, Error> {
        let listener = listen(&path).map_err(|source| Error::Metrics { path, source })?;
        Ok(Self {
            listener,
            statistics,
        })
    }

    /// Answers one reader after the other, for ever.
    pub async fn serve(&self) -> Infallible {
        loop {
            let answered = async {
                let (stream, _) = self.listener.accept().await?;
                let answer = answer(stream, &self.statistics);
                tokio::time::timeout(PATIENCE, answer).await?
            };
            if let Err(error) = answered.await {
                debug!(%error, "a reader of the counters went away");
            }
        }
    }
}

/// Through the folder's descriptor: a socket's path has room for 107 bytes.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let folder = std::fs::File::open(folder)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    UnixListener::bind(short.join(name))
}

async fn answer(mut stream: UnixStream, statistics: &Statistics) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|it| it == b"\r\n\r\n") {
        if request.len() > REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let body = statistics.render();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
