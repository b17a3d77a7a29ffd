//! Drives a [`Session`] over an upgraded connection: one task reads, one writes, one per connection.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, interval_at};

use super::netns;
use super::session::{Action, Pair, Session};
use hpk_spdy::{Decoder, Encoder, Frame};

const PING_EVERY: Duration = Duration::from_secs(15);
/// Frames that wait for a connection, or for the caller. Beyond that, who sends waits.
const DEPTH: usize = 32;

/// A connection under way: where its bytes go, and its task.
struct Link {
    /// `None` after the end of the caller's bytes.
    input: Option<mpsc::Sender<Vec<u8>>>,
    task: AbortHandle,
}

/// Serves the caller until it goes. `pod` is for messages.
pub async fn serve<C>(connection: C, netns: Option<PathBuf>, pod: String)
where
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(connection);
    let (frames_in, frames) = mpsc::channel(DEPTH);
    let mut links = HashMap::new();
    tokio::select! {
        ended = receive(read, &frames_in, &mut links, netns, &pod) => if let Err(error) = ended {
            tracing::debug!(%error, pod, "a port-forward broke");
        },
        ended = send(write, frames) => if let Err(error) = ended {
            tracing::debug!(%error, pod, "can't write to a port-forward");
        },
    }
    for link in links.into_values() {
        link.task.abort();
    }
}

async fn receive<C: AsyncRead>(
    mut read: ReadHalf<C>,
    frames: &mpsc::Sender<Frame>,
    links: &mut HashMap<u32, Link>,
    netns: Option<PathBuf>,
    pod: &str,
) -> io::Result<()> {
    let mut session = Session::default();
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 32 * 1024];
    let (over_in, mut over) = mpsc::unbounded_channel();
    loop {
        let count = tokio::select! {
            read = read.read(&mut buffer) => read?,
            Some(id) = over.recv() => {
                session.forget(id);
                links.remove(&id);
                continue;
            }
        };
        if count == 0 {
            return Ok(());
        }
        decoder.feed(&buffer[..count]);
        while let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
            for action in session.accept(frame) {
                match action {
                    Action::Send(frame) => {
                        if frames.send(frame).await.is_err() {
                            return Ok(());
                        }
                    }
                    Action::Connect(pair) => {
                        let (input, bytes) = mpsc::channel(DEPTH);
                        let (frames, over) = (frames.clone(), over_in.clone());
                        let (netns, pod) = (netns.clone(), pod.to_owned());
                        let task = tokio::spawn(async move {
                            link(pair, netns, &pod, bytes, &frames).await;
                            // Nobody to tell once the caller has gone.
                            let _ = over.send(pair.data);
                        });
                        let link = Link {
                            input: Some(input),
                            task: task.abort_handle(),
                        };
                        links.insert(pair.data, link);
                    }
                    Action::Data { id, bytes } => {
                        let input = links.get(&id).and_then(|link| link.input.clone());
                        if let Some(input) = input {
                            // Fails when the connection is over already.
                            let _ = input.send(bytes).await;
                        }
                    }
                    Action::DataEnd { id } => {
                        if let Some(link) = links.get_mut(&id) {
                            link.input = None;
                        }
                    }
                    Action::Reset { id } => {
                        if let Some(link) = links.remove(&id) {
                            link.task.abort();
                        }
                    }
                    Action::Close => return Ok(()),
                }
            }
        }
    }
}

async fn send<C: AsyncWrite>(
    mut write: WriteHalf<C>,
    mut frames: mpsc::Receiver<Frame>,
) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let mut bytes = Vec::new();
    let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    let mut ping = 0;
    loop {
        bytes.clear();
        let frame = tokio::select! {
            frame = frames.recv() => match frame {
                Some(frame) => frame,
                None => return Ok(()),
            },
            _ = pings.tick() => {
                ping += 2;
                Frame::Ping { id: ping }
            }
        };
        encoder
            .encode(&frame, &mut bytes)
            .map_err(io::Error::other)?;
        write.write_all(&bytes).await?;
        write.flush().await?;
    }
}

/// One connection, from its making to the end of both directions.
async fn link(
    pair: Pair,
    netns: Option<PathBuf>,
    pod: &str,
    input: mpsc::Receiver<Vec<u8>>,
    frames: &mpsc::Sender<Frame>,
) {
    let data = |id: u32, fin: bool, bytes: &[u8]| Frame::Data {
        id,
        fin,
        bytes: bytes.to_vec(),
    };
    let outcome = match connect(netns, pair.port).await {
        Ok(stream) => copy(stream, pair, input, frames).await,
        Err(error) => Err(error),
    };
    let text = match outcome {
        Ok(()) => String::new(),
        Err(error) => format!("error forwarding port {} to pod {pod}: {error}", pair.port),
    };
    // Who doesn't hear it has gone.
    let _ = frames.send(data(pair.error, true, text.as_bytes())).await;
    let _ = frames.send(data(pair.data, true, &[])).await;
}

async fn connect(netns: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    let stream = spawn_blocking(move || netns::connect(netns.as_deref(), port)).await??;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    TcpStream::from_std(stream)
}

async fn copy(
    stream: TcpStream,
    pair: Pair,
    mut input: mpsc::Receiver<Vec<u8>>,
    frames: &mpsc::Sender<Frame>,
) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let inward = async {
        while let Some(bytes) = input.recv().await {
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    let outward = async {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            let frame = Frame::Data {
                id: pair.data,
                fin: false,
                bytes: buffer[..count].to_vec(),
            };
            if frames.send(frame).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::pin!(inward, outward);
    let mut inward_ended = false;
    loop {
        tokio::select! {
            // The server's end is the connection's end: callers wait for nothing else.
            ended = &mut outward => return ended,
            ended = &mut inward, if !inward_ended => {
                inward_ended = true;
                // A server that has stopped reading may still answer.
                if let Err(error) = ended {
                    tracing::debug!(%error, port = pair.port, "can't write to a forwarded port");
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
