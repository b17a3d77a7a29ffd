//! What can go wrong in a run, and which CNI code its caller reads.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use hpk_cni_types::{ConfError, ErrorCode, ErrorObject, SpecVersion};

use crate::{netlink, relay, subnet};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the network configuration on stdin")]
    Stdin(#[source] io::Error),
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
    /// Code 2 wants key and value told.
    #[error("{key} {value} is not supported: {why}")]
    Unsupported {
        key: &'static str,
        value: String,
        why: &'static str,
    },
    #[error("{command} is not in CNI {version}")]
    NotInVersion {
        command: &'static str,
        version: SpecVersion,
    },
    #[error("container {container_id} has an interface {ifname:?} on this network already")]
    Attached {
        container_id: String,
        ifname: String,
    },
    #[error("CNI_NETNS {0} is the plugin's own network namespace")]
    OwnNamespace(PathBuf),
    #[error("container {container_id} has {address} on {ifname:?} already")]
    LeasedAlready {
        address: IpAddr,
        container_id: String,
        ifname: String,
    },
    #[error("address {0} is the gateway's or another attachment's")]
    AddressTaken(IpAddr),
    #[error("address {0}, which was asked for, is in none of the network's ranges")]
    NoSuchAddress(IpAddr),
    #[error("no address is left in {ranges}: all {leased} are leased")]
    Exhausted { ranges: String, leased: usize },
    #[error("neither nftables nor iptables can masquerade here")]
    NoNat,
    /// STATUS: pods can't reach those of other nodes.
    #[error("the overlay's device {0:?} is not up")]
    OverlayDown(String),
    /// CHECK found something else than ADD made.
    #[error("the attachment is not as ADD made it: {0}")]
    Check(String),
    #[error("no bubble of yours runs on this host: its relay's folder {0} is not there")]
    NoBubble(PathBuf),
    #[error(transparent)]
    Relay(#[from] relay::error::Error),
    #[error("{} of {total} attachments could not be removed: {}", failures.len(), failures.join("; "))]
    Gc { total: usize, failures: Vec<String> },
}

impl Error {
    /// The code a runtime acts upon.
    fn code(&self) -> ErrorCode {
        match self {
            Self::Environment(object) => object.code,
            Self::Delegate { source, .. } => source.code,
            Self::Conf(ConfError::Version(_)) | Self::NotInVersion { .. } => {
                ErrorCode::IncompatibleVersion
            }
            Self::Unsupported { .. } => ErrorCode::UnsupportedField,
            Self::OwnNamespace(_) => ErrorCode::InvalidEnvironment,
            Self::OverlayDown(_) => ErrorCode::LimitedConnectivity,
            Self::Conf(ConfError::Json(_))
            | Self::Answer { .. }
            | Self::Subnet(subnet::Error::Format { .. }) => ErrorCode::Decode,
            Self::Conf(ConfError::Invalid(_)) | Self::Invalid(_) | Self::PluginNotFound { .. } => {
                ErrorCode::InvalidNetworkConf
            }
            Self::NotReady(_) | Self::NoBubble(_) => ErrorCode::TryAgainLater,
            Self::Namespace { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ErrorCode::UnknownContainer
            }
            Self::Stdin(_)
            | Self::Subnet(_)
            | Self::Netlink(_)
            | Self::Sysctl { .. }
            | Self::File { .. }
            | Self::Namespace { .. }
            | Self::Spawn { .. }
            | Self::Relay(_) => ErrorCode::Io,
            Self::Check(_) | Self::Gc { .. } => ErrorCode::Other(100),
            Self::Exhausted { .. } => ErrorCode::Other(101),
            Self::Attached { .. } | Self::LeasedAlready { .. } => ErrorCode::Other(102),
            Self::AddressTaken(_) | Self::NoSuchAddress(_) => ErrorCode::Other(103),
            Self::NoNat => ErrorCode::Other(104),
        }
    }

    /// What a person can do about it.
    fn advice(&self) -> &'static str {
        match self {
            Self::NotReady(_) => "flanneld writes it once it has a lease; is it running?",
            Self::PluginNotFound { .. } => {
                "the reference plugins are in Debian's containernetworking-plugins"
            }
            Self::Attached { .. } | Self::LeasedAlready { .. } => "DEL it first",
            Self::Exhausted { .. } => {
                "GC gives back what dead containers have; else the network needs larger subnets"
            }
            Self::NoNat => "set ipMasq to false, or install iptables for a kernel without nftables",
            Self::OverlayDown(_) => "is hpk-net-daemon running?",
            Self::NotInVersion { .. } => "the network's conflist names its cniVersion",
            Self::Namespace { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "the container has gone, or CNI_NETNS names another's"
            }
            Self::Check(_) => "DEL and ADD make the attachment anew",
            _ => "",
        }
    }

    /// The error object: what was attempted as message, why as details.
    pub fn into_object(self) -> ErrorObject {
        match self {
            Self::Environment(object) => return object,
            Self::Relay(error) => return error.into_object(),
            _ => {}
        }
        ErrorObject {
            cni_version: String::new(),
            code: self.code(),
            msg: self.to_string(),
            details: match (chain(&self), self.advice()) {
                (causes, "") => causes,
                (causes, advice) if causes.is_empty() => advice.to_owned(),
                (causes, advice) => format!("{causes} ({advice})"),
            },
        }
    }

    /// STATUS has two codes of its own.
    pub fn into_status_object(self) -> ErrorObject {
        let mut object = self.into_object();
        if object.code != ErrorCode::LimitedConnectivity {
            object.code = ErrorCode::PluginNotAvailable;
        }
        object
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
