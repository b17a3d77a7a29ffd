//! What goes over the relay's socket. Pure: bytes in, values or an error out.
//!
//! The socket keeps message boundaries (`SOCK_SEQPACKET`), so each message is
//! one thing. A connection's first message is a [`Request`] in JSON, its second
//! the [`Answer`], in JSON too. After a granted [`Request::Join`] with
//! [`Form::Frames`] each further message, both ways, is one frame: the TAP's
//! [`VirtioHeader`], then the Ethernet frame, possibly a super-frame.
//!
//! Guarantees: whatever bytes come, decoding neither panics nor allocates more
//! than the message is long. An error is the end of that connection alone.

use hpk_cni_types::env::check_ifname;
use hpk_cni_types::{Command, ErrorObject, ValidAttachment};
use hpk_frames::codec::headers::ETHERNET;
use hpk_frames::codec::virtio::{self, VirtioHeader};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest request or answer, bytes.
pub const MESSAGE: usize = 64 << 10;
/// Longest frame with its header, bytes: an IP packet of 65535, an Ethernet
/// header, a VLAN tag.
pub const FRAME: usize = virtio::LENGTH + ETHERNET + 4 + 65535;

/// Which attachment, as CNI tells them apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attachment {
    pub network: String,
    pub container_id: String,
    pub ifname: String,
}

impl std::fmt::Display for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            network,
            container_id,
            ifname,
        } = self;
        write!(f, "{network}:{container_id}:{ifname}")
    }
}

/// How the pod's frames come to the resident daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// It is handed the TAP's descriptor: one process moves the frames.
    #[default]
    Descriptor,
    /// Over this connection: a process on the pod's side reads and writes the TAP.
    Frames,
}

/// What the resident daemon is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// Run the plugin in the daemon's namespaces, for the bridge's side alone.
    Plugin(PluginRequest),
    /// Join the pod's TAP to the bridge. With [`Form::Descriptor`] the TAP comes
    /// with the message; a second descriptor, if there is one, becomes readable
    /// when nobody is left who could ask for DEL.
    Join {
        attachment: Attachment,
        #[serde(default)]
        form: Form,
    },
    /// Let go of both ends; what isn't joined is fine.
    Leave { attachment: Attachment },
    /// Counters, as Prometheus reads them.
    Status,
}

/// A run of the plugin asked for from outside the bubble.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PluginRequest {
    pub command: PluginCommand,
    pub cni_version: String,
    /// The caller's name for its network; apart from others' at GC.
    pub caller: String,
    #[serde(default)]
    pub container_id: String,
    #[serde(default)]
    pub ifname: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_result: Option<Value>,
    /// What is to stay, for GC.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub valid: Vec<ValidAttachment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PluginCommand {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

impl PluginCommand {
    fn is_of_an_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

impl From<PluginCommand> for Command {
    fn from(command: PluginCommand) -> Self {
        match command {
            PluginCommand::Add => Self::Add,
            PluginCommand::Del => Self::Del,
            PluginCommand::Check => Self::Check,
            PluginCommand::Gc => Self::Gc,
            PluginCommand::Status => Self::Status,
        }
    }
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    Done,
    /// The attachment's name in the bubble, and the plugin's result.
    Added {
        attachment: Attachment,
        result: Value,
    },
    Text(String),
    /// No such attachment: a pod's side that asks for it should end.
    Unknown,
    Failed(ErrorObject),
}

/// What is wrong with a message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    #[error("a message that is not valid JSON of the relay's")]
    Json(#[source] serde_json::Error),
    #[error("{what} {value:?} is not valid")]
    Value { what: &'static str, value: String },
    #[error("a frame of {0} bytes")]
    Length(usize),
    #[error("a frame whose header says {0}")]
    Header(&'static str),
}

pub fn decode_request(bytes: &[u8]) -> Result<Request, WireError> {
    let request: Request = decode(bytes)?;
    match &request {
        Request::Plugin(plugin) => {
            check_name("network", &plugin.caller)?;
            if plugin.command.is_of_an_attachment() {
                check_name("container id", &plugin.container_id)?;
                check_interface(&plugin.ifname)?;
            }
        }
        Request::Join { attachment, .. } | Request::Leave { attachment } => {
            check_attachment(attachment)?;
        }
        Request::Status => {}
    }
    Ok(request)
}

pub fn decode_answer(bytes: &[u8]) -> Result<Answer, WireError> {
    let answer: Answer = decode(bytes)?;
    if let Answer::Added { attachment, .. } = &answer {
        check_attachment(attachment)?;
    }
    Ok(answer)
}

/// A request or an answer as a message.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let bytes = serde_json::to_vec(message).map_err(WireError::Json)?;
    match bytes.len() > MESSAGE {
        true => Err(WireError::TooLong(bytes.len())),
        false => Ok(bytes),
    }
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    if bytes.len() > MESSAGE {
        return Err(WireError::TooLong(bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(WireError::Json)
}

/// They become file names.
fn check_attachment(attachment: &Attachment) -> Result<(), WireError> {
    check_name("network", &attachment.network)?;
    check_name("container id", &attachment.container_id)?;
    check_interface(&attachment.ifname)
}

fn check_name(what: &'static str, value: &str) -> Result<(), WireError> {
    match hpk_cni_types::env::is_valid_id(value) {
        true => Ok(()),
        false => Err(WireError::Value {
            what,
            value: value.to_owned(),
        }),
    }
}

fn check_interface(value: &str) -> Result<(), WireError> {
    check_ifname(value).map_err(|_| WireError::Value {
        what: "interface name",
        value: value.to_owned(),
    })
}

/// Looks at a frame before the kernel is given it: its length, and a header
/// that points into it (virtio 1.2, section 5.1.6.2).
pub fn check_frame(message: &[u8]) -> Result<(), WireError> {
    let (header, frame) = message
        .split_first_chunk::<{ virtio::LENGTH }>()
        .filter(|_| (virtio::LENGTH + ETHERNET..=FRAME).contains(&message.len()))
        .ok_or(WireError::Length(message.len()))?;
    let header = VirtioHeader::read(header).ok_or(WireError::Header(
        "unknown flags or an unknown segmentation",
    ))?;
    if let Some(sum) = header.checksum
        && usize::from(sum.start) + usize::from(sum.offset) + 2 > frame.len()
    {
        return Err(WireError::Header("a checksum outside the frame"));
    }
    match header.segments {
        Some(segments) if segments.size == 0 => Err(WireError::Header("segments of no bytes")),
        Some(segments) if usize::from(segments.header) > frame.len() => {
            Err(WireError::Header("headers longer than the frame"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
