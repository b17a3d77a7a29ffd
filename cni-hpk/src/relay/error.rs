//! What can go wrong on either side of the relay.

use std::io;
use std::path::PathBuf;

use hpk_cni_types::{ErrorCode, ErrorObject};

use super::wire::{Attachment, WireError};
use crate::{netlink, plugin};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// No daemon listens; which is the caller's to judge.
    #[error("no hpk-net-daemon relay listens in {folder}")]
    NoDaemon {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("talk to the relay in {folder}")]
    Talk {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("message of the relay")]
    Wire(#[from] WireError),
    #[error("the relay answered what wasn't asked: {0}")]
    Answer(String),
    /// The daemon's own error object.
    #[error(transparent)]
    Refused(ErrorObject),
    #[error("the relay knows no attachment {0}")]
    Unknown(Attachment),
    #[error("TAP device {device}")]
    Tap {
        device: String,
        #[source]
        source: io::Error,
    },
    #[error("the descriptor passed for {attachment} {what}")]
    Descriptor {
        attachment: Attachment,
        what: String,
    },
    #[error("enter network namespace {path}")]
    Enter {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("program hpk-net-daemon is neither beside this program nor in {folders:?} nor on PATH")]
    NoProgram { folders: Vec<PathBuf> },
    #[error("run {program}")]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the pod's side of the relay: {0}")]
    PodSide(String),
    #[error("start moving frames")]
    Start(#[source] io::Error),
    #[error("no network with plugin cni-hpk in {0}")]
    NoNetwork(PathBuf),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error(transparent)]
    Plugin(Box<plugin::error::Error>),
}

impl From<plugin::error::Error> for Error {
    fn from(error: plugin::error::Error) -> Self {
        Self::Plugin(Box::new(error))
    }
}

impl Error {
    /// What a CNI caller reads.
    pub fn into_object(self) -> ErrorObject {
        let code = match self {
            Self::Refused(object) => return object,
            Self::Plugin(error) => return error.into_object(),
            Self::NoDaemon { .. } | Self::Talk { .. } => ErrorCode::TryAgainLater,
            Self::Unknown(_) => ErrorCode::UnknownContainer,
            Self::Wire(_) | Self::Answer(_) => ErrorCode::Decode,
            Self::NoNetwork(_) | Self::NoProgram { .. } => ErrorCode::InvalidNetworkConf,
            _ => ErrorCode::Io,
        };
        ErrorObject {
            details: plugin::error::chain(&self),
            ..ErrorObject::new(code, self.to_string())
        }
    }
}
