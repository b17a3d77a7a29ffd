//! The streams over WebSocket: a message belongs to a channel (0 stdin, 1 stdout, 2 stderr, 3 error,
//! 4 resize); in protocol v5, channel 255 closes the one that its second byte names.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::channels::{Channels, Ends, Output, channels};
use super::subprotocol::Subprotocol;
use super::wanted::Wanted;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

const PING_EVERY: Duration = Duration::from_secs(15);
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// Longest message taken, bytes.
const MAX_MESSAGE: usize = 1 << 20;

type Socket<C> = WebSocketStream<C>;

/// Starts on a connection that was just upgraded.
pub async fn open<C>(connection: C, wanted: Wanted, protocol: Subprotocol) -> Channels
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let socket = Socket::from_raw_socket(connection, Role::Server, Some(config)).await;
    let (sink, stream) = socket.split();
    let (channels, mut ends) = channels();
    if !wanted.stdin {
        ends.stdin = None;
    }
    let (pong_in, pong) = mpsc::channel(8);
    let (stdin, resize) = (ends.stdin.take(), ends.resize.clone());
    let gone = ends.gone.clone();
    tokio::spawn(async move {
        if let Err(error) = read(stream, protocol, stdin, resize, pong_in).await {
            tracing::debug!(%error, "a WebSocket broke");
        }
        gone.cancel();
    });
    tokio::spawn(async move {
        let gone = ends.gone.clone();
        if let Err(error) = write(sink, protocol, ends, wanted, pong).await {
            tracing::debug!(%error, "can't write to a WebSocket");
        }
        gone.cancel();
    });
    channels
}

async fn read<C>(
    mut stream: SplitStream<Socket<C>>,
    protocol: Subprotocol,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    resize: tokio::sync::watch::Sender<Option<super::channels::Size>>,
    pong: mpsc::Sender<()>,
) -> Result<(), Error>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = stream.next().await {
        let bytes = match message? {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Message::Close(_) => return Ok(()),
            // The library has queued the answer: the writer must flush it.
            Message::Ping(_) => {
                let _ = pong.try_send(());
                continue;
            }
            _ => continue,
        };
        let Some((channel, content)) = protocol.decode(bytes) else {
            continue;
        };
        match channel {
            STDIN if !content.is_empty() => {
                if let Some(sender) = &stdin
                    && sender.send(content).await.is_err()
                {
                    stdin = None;
                }
            }
            RESIZE => {
                if let Ok(size) = serde_json::from_slice(&content) {
                    resize.send_replace(Some(size));
                }
            }
            CLOSE if content.as_ref() == [STDIN] => stdin = None,
            _ => {}
        }
    }
    Ok(())
}

async fn write<C>(
    mut sink: SplitSink<Socket<C>, Message>,
    protocol: Subprotocol,
    mut ends: Ends,
    wanted: Wanted,
    mut pong: mpsc::Receiver<()>,
) -> Result<(), Error>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    // An empty message on the first output channel says that the connection stands.
    let first = match wanted {
        Wanted { stdout: true, .. } => STDOUT,
        Wanted { stderr: true, .. } => STDERR,
        _ => ERROR,
    };
    sink.send(protocol.encode(first, &[])).await?;
    let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    loop {
        tokio::select! {
            output = ends.output.recv() => match output {
                Some(Output::Stdout(bytes)) => sink.send(protocol.encode(STDOUT, &bytes)).await?,
                Some(Output::Stderr(bytes)) => sink.send(protocol.encode(STDERR, &bytes)).await?,
                Some(Output::End(status)) => {
                    if let Some(word) = protocol.last_word(&status) {
                        sink.send(protocol.encode(ERROR, &word)).await?;
                    }
                    break;
                }
                None => break,
            },
            _ = pings.tick() => sink.send(Message::Ping(Bytes::new())).await?,
            Some(()) = pong.recv() => sink.flush().await?,
            () = ends.gone.cancelled() => return Ok(()),
        }
    }
    let close = CloseFrame {
        code: CloseCode::Normal,
        reason: Utf8Bytes::default(),
    };
    sink.send(Message::Close(Some(close))).await?;
    let _ = timeout(CLOSE_LIMIT, ends.gone.cancelled()).await;
    Ok(())
}

#[cfg(test)]
#[path = "websocket_tests.rs"]
mod tests;
