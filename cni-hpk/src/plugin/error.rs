//! What can go wrong in a run, and which CNI code its caller reads.

use std::io;
use std::path::PathBuf;

use hpk_cni_types::{ConfError, ErrorCode, ErrorObject};

use crate::{netlink, subnet};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the network configuration on stdin")]
    Stdin(#[source] io::Error),
    #[error("start")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Environment(#[from] ErrorObject),
    #[error(transparent)]
    Conf(#[from] ConfError),
    /// A configuration that parses but can't be meant.
    #[error("{0}")]
    Invalid(String),
    /// Flannel's lease or the overlay isn't there (yet).
    #[error("the pod network is not ready")]
    NotReady(#[source] subnet::Error),
    #[error(transparent)]
    Subnet(subnet::Error),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error("set {path} to {value}")]
    Sysctl {
        path: PathBuf,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error("{operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("network namespace {path} can't be entered from here{hint}")]
    Namespace {
        path: PathBuf,
        hint: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("plugin {plugin:?} is in none of the folders of CNI_PATH ({folders:?})")]
    PluginNotFound {
        plugin: String,
        folders: Vec<PathBuf>,
    },
    #[error("run plugin {plugin:?}")]
    Spawn {
        plugin: String,
        #[source]
        source: io::Error,
    },
    /// A delegated plugin's own error; its code is passed on.
    #[error("plugin {plugin:?}")]
    Delegate {
        plugin: String,
        #[source]
        source: ErrorObject,
    },
    #[error("plugin {plugin:?} gave no valid answer: {output}")]
    Answer { plugin: String, output: String },
    /// CHECK found something else than ADD made.
    #[error("the attachment is not as ADD made it: {0}")]
    Check(String),
    #[error("{} of {total} attachments could not be removed: {}", failures.len(), failures.join("; "))]
    Gc { total: usize, failures: Vec<String> },
}

impl Error {
    /// The code a runtime acts upon.
    fn code(&self) -> ErrorCode {
        match self {
            Self::Environment(object) => object.code,
            Self::Delegate { source, .. } => source.code,
            Self::Conf(ConfError::Version(_)) => ErrorCode::IncompatibleVersion,
            Self::Conf(ConfError::Json(_)) | Self::Answer { .. } => ErrorCode::Decode,
            Self::Conf(ConfError::Invalid(_)) | Self::Invalid(_) | Self::PluginNotFound { .. } => {
                ErrorCode::InvalidNetworkConf
            }
            Self::NotReady(_) => ErrorCode::TryAgainLater,
            Self::Namespace { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ErrorCode::UnknownContainer
            }
            Self::Stdin(_)
            | Self::Runtime(_)
            | Self::Subnet(_)
            | Self::Netlink(_)
            | Self::Sysctl { .. }
            | Self::File { .. }
            | Self::Namespace { .. }
            | Self::Spawn { .. } => ErrorCode::Io,
            Self::Check(_) | Self::Gc { .. } => ErrorCode::Other(100),
        }
    }

    /// The error object: what was attempted as message, why as details.
    pub fn into_object(self) -> ErrorObject {
        if let Self::Environment(object) = self {
            return object;
        }
        ErrorObject {
            cni_version: String::new(),
            code: self.code(),
            msg: self.to_string(),
            details: chain(&self),
        }
    }

    /// STATUS has codes of its own.
    pub fn into_status_object(self) -> ErrorObject {
        ErrorObject {
            code: ErrorCode::PluginNotAvailable,
            ..self.into_object()
        }
    }
}

/// The causes, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
