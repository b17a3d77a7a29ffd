//! Drives a [`Session`] over an upgraded connection: one task reads, one writes.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use super::channels::{Channels, Ends, Output, channels};
use super::session::{Action, Session, Streams};
use super::wanted::Wanted;
use hpk_spdy::{self as spdy, Decoder, Encoder, Frame};

/// How long the caller may take to open its streams; the stock kubelet's limit.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// How long the caller may take to hang up after the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// A ping finds a caller that has gone without a word while we don't read.
const PING_EVERY: Duration = Duration::from_secs(15);
/// Bytes of stdin kept for a process that doesn't read; then the connection isn't read either.
const MAX_STDIN: usize = 256 * 1024;

/// A connection that ended before it began.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the caller did not open its streams within {}s", OPEN_LIMIT.as_secs())]
    TimedOut,
    #[error("the caller hung up before its streams were open")]
    HungUp,
}

/// Waits for the caller's streams.
pub async fn open<C>(connection: C, wanted: Wanted) -> Result<Channels, Error>
where
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(connection);
    let (channels, ends) = channels();
    let Ends {
        stdin,
        resize,
        output,
        gone,
    } = ends;
    let (frames_in, frames) = mpsc::channel(64);
    let (opened_in, opened) = oneshot::channel();
    let done = CancellationToken::new();
    let mut reader = Reader {
        read,
        session: Session::new(wanted),
        stdin,
        waiting: VecDeque::new(),
        waiting_bytes: 0,
        resize,
        frames: frames_in,
        opened: Some(opened_in),
    };
    let reader_gone = gone.clone();
    let writer_done = done.clone();
    tokio::spawn(async move {
        tokio::select! {
            read = reader.run() => if let Err(error) = read {
                tracing::debug!(%error, "a SPDY connection broke");
            },
            () = writer_done.cancelled() => {}
        }
        reader_gone.cancel();
    });
    let (streams_in, streams) = oneshot::channel();
    let writer = Writer {
        write,
        encoder: Encoder::default(),
        frames,
        output,
        gone: gone.clone(),
    };
    tokio::spawn(async move {
        if let Err(error) = writer.run(streams).await {
            tracing::debug!(%error, "can't write to a SPDY connection");
        }
        done.cancel();
        gone.cancel();
    });
    match timeout(OPEN_LIMIT, opened).await {
        Ok(Ok(streams)) => {
            // The writer is there until `channels` is dropped or the connection breaks.
            streams_in.send(streams).map_err(|_| Error::HungUp)?;
            Ok(channels)
        }
        Ok(Err(_)) => Err(Error::HungUp),
        Err(_) => Err(Error::TimedOut),
    }
}

struct Reader<C> {
    read: ReadHalf<C>,
    session: Session,
    stdin: Option<mpsc::Sender<Bytes>>,
    /// Stdin that the process hasn't taken; `None` is its end.
    waiting: VecDeque<Option<Bytes>>,
    waiting_bytes: usize,
    resize: tokio::sync::watch::Sender<Option<super::channels::Size>>,
    frames: mpsc::Sender<Frame>,
    opened: Option<oneshot::Sender<Streams>>,
}

impl<C: AsyncRead> Reader<C> {
    async fn run(&mut self) -> io::Result<()> {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            tokio::select! {
                read = self.read.read(&mut buffer), if self.waiting_bytes < MAX_STDIN => {
                    let count = read?;
                    if count == 0 {
                        return Ok(());
                    }
                    decoder.feed(&buffer[..count]);
                    while let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
                        for action in self.session.accept(frame) {
                            if !self.act(action).await {
                                return Ok(());
                            }
                        }
                    }
                    if self.session.is_complete() && let Some(opened) = self.opened.take() {
                        // Who waited for it may have given up.
                        let _ = opened.send(self.session.streams);
                    }
                }
                pass = reserve(self.stdin.clone()), if !self.waiting.is_empty() => {
                    match (pass, self.waiting.pop_front()) {
                        (Some(permit), Some(Some(bytes))) => {
                            self.waiting_bytes -= bytes.len();
                            permit.send(bytes);
                        }
                        // The end, or nobody wants any more.
                        _ => {
                            self.waiting.clear();
                            self.waiting_bytes = 0;
                            self.stdin = None;
                        }
                    }
                }
            }
        }
    }

    /// False: the connection is to be closed.
    async fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Send(frame) => return self.frames.send(frame).await.is_ok(),
            Action::Stdin(bytes) if self.stdin.is_some() => {
                self.waiting_bytes += bytes.len();
                self.waiting.push_back(Some(bytes.into()));
            }
            Action::StdinEnd if self.stdin.is_some() => self.waiting.push_back(None),
            Action::Stdin(_) | Action::StdinEnd => {}
            Action::Resize(size) => {
                self.resize.send_replace(Some(size));
            }
            Action::Close => return false,
        }
        true
    }
}

async fn reserve(stdin: Option<mpsc::Sender<Bytes>>) -> Option<mpsc::OwnedPermit<Bytes>> {
    stdin?.reserve_owned().await.ok()
}

struct Writer<C> {
    write: WriteHalf<C>,
    encoder: Encoder,
    frames: mpsc::Receiver<Frame>,
    output: mpsc::Receiver<Output>,
    gone: CancellationToken,
}

impl<C: AsyncWrite> Writer<C> {
    async fn run(mut self, streams: oneshot::Receiver<Streams>) -> io::Result<()> {
        let outcome = self.serve(streams).await;
        // The caller hangs up once it has read everything; who closes first could cut it short.
        if outcome.is_ok() && timeout(CLOSE_LIMIT, self.gone.cancelled()).await.is_err() {
            tracing::debug!("a caller did not hang up after the end");
        }
        // Errors here say no more than that it is closed already.
        let _ = self.write.shutdown().await;
        outcome
    }

    async fn serve(&mut self, streams: oneshot::Receiver<Streams>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        let mut ping = 0;
        let mut streams_known = None;
        tokio::pin!(streams);
        loop {
            bytes.clear();
            let mut last = false;
            let sent = tokio::select! {
                frame = self.frames.recv() => match frame {
                    Some(frame) => self.encoder.encode(&frame, &mut bytes),
                    // The reader has ended: the caller is gone.
                    None => return Ok(()),
                },
                known = &mut streams, if streams_known.is_none() => match known {
                    Ok(known) => {
                        streams_known = Some(known);
                        Ok(())
                    }
                    Err(_) => return Ok(()),
                },
                output = self.output.recv(), if streams_known.is_some() => {
                    let streams = streams_known.unwrap_or_default();
                    last = !matches!(output, Some(Output::Stdout(_) | Output::Stderr(_)));
                    encode(&mut self.encoder, output, &streams, &mut bytes)
                }
                _ = pings.tick() => {
                    ping += 2;
                    self.encoder.encode(&Frame::Ping { id: ping }, &mut bytes)
                }
            };
            sent.map_err(io::Error::other)?;
            self.write.write_all(&bytes).await?;
            self.write.flush().await?;
            if last {
                return Ok(());
            }
        }
    }
}

/// Output as frames; its end closes every stream, and so does a sender that vanished.
fn encode(
    encoder: &mut Encoder,
    output: Option<Output>,
    streams: &Streams,
    out: &mut Vec<u8>,
) -> Result<(), spdy::Error> {
    let mut data = |id: Option<u32>, fin: bool, bytes: &[u8]| match id {
        Some(id) => encoder.encode(
            &Frame::Data {
                id,
                fin,
                bytes: bytes.to_vec(),
            },
            out,
        ),
        None => Ok(()),
    };
    match output {
        Some(Output::Stdout(bytes)) => data(streams.stdout, false, &bytes),
        Some(Output::Stderr(bytes)) => data(streams.stderr, false, &bytes),
        end => {
            let status = match end {
                Some(Output::End(status)) => status.to_json(),
                _ => Vec::new(),
            };
            data(streams.error, true, &status)?;
            data(streams.stdout, true, &[])?;
            data(streams.stderr, true, &[])?;
            data(streams.stdin, true, &[])?;
            data(streams.resize, true, &[])
        }
    }
}

#[cfg(test)]
#[path = "spdy_tests.rs"]
mod tests;
