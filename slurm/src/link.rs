//! What the host's and the bubble's part of a node say to each other: JSON lines over a UNIX
//! socket in the folder that both see.
//!
//! Guarantees: when either side goes, the other reads the end of the stream, and ends the bubble.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use anyhow::{Context as _, Result};

/// The socket's name in the folder.
pub const SOCKET: &str = "link.sock";

/// From the bubble to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "report")]
pub enum Report {
    /// A step of the start is done.
    Step { text: String, seconds: String },
    /// flanneld has the bubble's subnet: the host may start the overlay's daemon.
    Leased,
    /// A process ended and is started again.
    Restarted { text: String },
    /// All nodes are Ready (from the controller only).
    Ready { nodes: usize },
    /// The bubble can't go on; it is stopping.
    Failed { cause: String },
}

/// From the host to the bubble.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "order")]
pub enum Order {
    /// End the pods, giving them so many seconds, and then everything.
    Stop { grace_seconds: u64 },
    /// The uplink is a new one, which knows none of the connections that went through the old.
    UplinkRestarted,
}

/// The reading half.
#[derive(Debug)]
pub struct Receiver {
    stream: BufReader<OwnedReadHalf>,
    /// What has come of a line when a caller stopped waiting for its rest.
    line: Vec<u8>,
}

/// The writing half.
#[derive(Debug)]
pub struct Sender(OwnedWriteHalf);

pub fn split(stream: UnixStream) -> (Receiver, Sender) {
    let (read, write) = stream.into_split();
    let receiver = Receiver {
        stream: BufReader::new(read),
        line: Vec::new(),
    };
    (receiver, Sender(write))
}

impl Receiver {
    /// The next message; None when the other side has gone.
    /// Nothing is lost when the caller stops waiting.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        self.stream
            .read_until(b'\n', &mut self.line)
            .await
            .context("reading the link")?;
        if self.line.is_empty() {
            return Ok(None);
        }
        let line = std::mem::take(&mut self.line);
        let message = serde_json::from_slice(&line)
            .with_context(|| format!("the link's message {:?}", String::from_utf8_lossy(&line)))?;
        Ok(Some(message))
    }
}

impl Sender {
    pub async fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(message).context("writing a message")?;
        line.push(b'\n');
        self.0.write_all(&line).await.context("writing to the link")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_report_arrives_as_it_was_sent_and_then_the_end() {
        let (host, bubble) = UnixStream::pair().unwrap();
        let (mut receiver, _) = split(host);
        let (_, mut sender) = split(bubble);
        let report = Report::Failed {
            cause: "etcd: no\nspace".into(),
        };
        sender.send(&report).await.unwrap();
        drop(sender);
        assert_eq!(receiver.next::<Report>().await.unwrap(), Some(report));
        assert_eq!(receiver.next::<Report>().await.unwrap(), None);
    }
}
