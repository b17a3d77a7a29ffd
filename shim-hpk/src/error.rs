//! What can go wrong, and what the Task API's caller reads then.

use std::{io, path::PathBuf};

use containerd_shim::protos::ttrpc;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {}: {source}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("understand {}: {source}", path.display())]
    Spec {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("understand the exec's process: {0}")]
    ExecSpec(#[source] serde_json::Error),
    /// The spec asks for something this runtime does not do; the field's name as in the OCI spec.
    #[error("{field} is not supported: {why}")]
    Unsupported { field: String, why: &'static str },
    #[error("{field} is invalid: {why}")]
    Invalid { field: String, why: String },
    /// A system call of the shim's own.
    #[error("{action}: {source}")]
    System {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("apptainer not found in {path:?}: is it installed on this host?")]
    NoEngine { path: String },
    #[error("hpk-pause not found beside the shim or in {path:?}")]
    NoPause { path: String },
    /// Apptainer ended before the container ran; what it printed is the reason.
    #[error("apptainer could not make the container ({ended}): {said}")]
    Engine { ended: String, said: String },
    /// A hook of the spec's; its place there, and what it printed.
    #[error("{field} {} failed ({how}): {said}", path.display())]
    Hook {
        field: String,
        path: PathBuf,
        how: String,
        said: String,
    },
    /// The container's own set-up failed, or its program can't be run.
    #[error("{0}")]
    Container(String),
    #[error("{what} did not answer within {seconds} s")]
    TimedOut { what: &'static str, seconds: u64 },
    #[error("logger {uri}: {why}")]
    Logger { uri: String, why: String },
    #[error("{0}: not found")]
    NotFound(String),
    #[error("{0}: already exists")]
    AlreadyExists(String),
    #[error("{0}")]
    Precondition(String),
    #[error("{0} is not implemented by this runtime")]
    Unimplemented(&'static str),
    #[error(transparent)]
    Ids(#[from] hpk_userns::inside::Unreadable),
    #[error(transparent)]
    Cgroup(#[from] hpk_cgroup::Error),
}

impl Error {
    /// Names a failed system call.
    pub fn system<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }

    fn code(&self) -> ttrpc::Code {
        match self {
            Self::Unimplemented(_) | Self::Cgroup(hpk_cgroup::Error::NoFreezer) => {
                ttrpc::Code::UNIMPLEMENTED
            }
            // Not UNIMPLEMENTED: containerd takes that for an older Task API, and tries it instead.
            Self::Unsupported { .. }
            | Self::Invalid { .. }
            | Self::Spec { .. }
            | Self::ExecSpec(_)
            | Self::Cgroup(hpk_cgroup::Error::Invalid { .. }) => ttrpc::Code::INVALID_ARGUMENT,
            Self::NotFound(_) => ttrpc::Code::NOT_FOUND,
            Self::AlreadyExists(_) => ttrpc::Code::ALREADY_EXISTS,
            Self::Precondition(_) => ttrpc::Code::FAILED_PRECONDITION,
            Self::TimedOut { .. } | Self::Cgroup(hpk_cgroup::Error::NotFrozen { .. }) => {
                ttrpc::Code::DEADLINE_EXCEEDED
            }
            Self::File { .. }
            | Self::System { .. }
            | Self::NoEngine { .. }
            | Self::NoPause { .. }
            | Self::Engine { .. }
            | Self::Hook { .. }
            | Self::Container(_)
            | Self::Logger { .. }
            | Self::Ids(_)
            | Self::Cgroup(
                hpk_cgroup::Error::File { .. } | hpk_cgroup::Error::NotHandedOver { .. },
            ) => ttrpc::Code::UNKNOWN,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(e: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(e.code(), e.to_string()))
    }
}

impl From<Error> for containerd_shim::Error {
    fn from(e: Error) -> Self {
        Self::Other(e.to_string())
    }
}
