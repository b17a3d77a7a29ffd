//! What a transport offers to the process's side.

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::status::Status;

/// Pieces of stdin, and of output, that may wait in memory.
pub const DEPTH: usize = 8;

/// A terminal's size in characters, as resize messages have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Size {
    #[serde(rename = "Width")]
    pub width: u16,
    #[serde(rename = "Height")]
    pub height: u16,
}

/// What goes to the caller.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last: how it ended. Everything is closed after it.
    End(Status),
}

/// One end of a caller's connection.
#[derive(Debug)]
pub struct Channels {
    /// Closed: the caller's stdin has ended (or there was none).
    pub stdin: mpsc::Receiver<Bytes>,
    /// The newest size, once there is one.
    pub resize: watch::Receiver<Option<Size>>,
    pub output: mpsc::Sender<Output>,
    /// The caller has gone.
    pub gone: CancellationToken,
}

/// The transport's ends of them.
#[derive(Debug)]
pub struct Ends {
    /// Dropped when stdin ends.
    pub stdin: Option<mpsc::Sender<Bytes>>,
    pub resize: watch::Sender<Option<Size>>,
    pub output: mpsc::Receiver<Output>,
    pub gone: CancellationToken,
}

pub fn channels() -> (Channels, Ends) {
    let (stdin_in, stdin) = mpsc::channel(DEPTH);
    let (resize_in, resize) = watch::channel(None);
    let (output, output_out) = mpsc::channel(DEPTH);
    let gone = CancellationToken::new();
    (
        Channels {
            stdin,
            resize,
            output,
            gone: gone.clone(),
        },
        Ends {
            stdin: Some(stdin_in),
            resize: resize_in,
            output: output_out,
            gone,
        },
    )
}
