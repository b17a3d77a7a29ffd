//! What can go wrong between a caller and a shim.

use std::{io, path::PathBuf, time::Duration};

use containerd_shim_protos::ttrpc;

/// An attempt at talking to a shim that failed; the source says why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shim binary could not be run at all.
    #[error("run {} {action}", binary.display())]
    Spawn {
        binary: PathBuf,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    /// The shim binary ran and exited non-zero; what it printed is the reason.
    #[error("{} {action} exited with {status}: {output}", binary.display())]
    Exit {
        binary: PathBuf,
        action: &'static str,
        /// As [`std::process::ExitStatus`] prints it.
        status: String,
        /// Its stderr (or stdout), trimmed.
        output: String,
    },
    /// The shim binary did not finish in time (it was killed).
    #[error("{} {action} did not finish within {limit:?}", binary.display())]
    TimedOut {
        binary: PathBuf,
        action: &'static str,
        limit: Duration,
    },
    /// The shim's answer to `start`/`delete`, or the address file, isn't what containerd's protocol says.
    #[error("understand {what}: {text:?}")]
    Reply { what: String, text: String },
    /// A file of the bundle.
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// No connection to the shim's socket.
    #[error("connect to shim at {address}")]
    Connect {
        address: String,
        #[source]
        source: ttrpc::Error,
    },
    /// A Task API call failed.
    #[error("{method} of {id}")]
    Call {
        method: &'static str,
        id: String,
        #[source]
        source: ttrpc::Error,
    },
    /// The events endpoint could not be set up.
    #[error("serve events at {}", path.display())]
    Events {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A request longer than ttrpc can carry.
    #[error("{method} of {id}: a request of {bytes} bytes, the limit is {limit}")]
    TooLong {
        method: &'static str,
        id: String,
        bytes: usize,
        limit: usize,
    },
    /// Something does not fit into, or come out of, its protobuf form.
    #[error("encode or decode {what}")]
    Encoding {
        what: &'static str,
        #[source]
        source: containerd_shim_protos::protobuf::Error,
    },
}

impl Error {
    fn code(&self) -> Option<ttrpc::Code> {
        match self {
            Self::Call {
                source: ttrpc::Error::RpcStatus(status),
                ..
            } => Some(status.code()),
            _ => None,
        }
    }

    /// The shim lives but knows no such container or exec.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(ttrpc::Code::NOT_FOUND)
    }

    /// The shim already has a container or exec of that name.
    pub fn is_already_exists(&self) -> bool {
        self.code() == Some(ttrpc::Code::ALREADY_EXISTS)
    }

    /// The call makes no sense in the process's present state (kill or resize of one not running, …).
    pub fn is_failed_precondition(&self) -> bool {
        self.code() == Some(ttrpc::Code::FAILED_PRECONDITION)
    }

    /// The shim does not do this.
    pub fn is_unimplemented(&self) -> bool {
        self.code() == Some(ttrpc::Code::UNIMPLEMENTED)
    }

    /// The shim's process is gone (or hung up): use [`crate::delete_binary`] to clean up after it.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Call { source, .. } => matches!(
                source,
                ttrpc::Error::RemoteClosed
                    | ttrpc::Error::LocalClosed
                    | ttrpc::Error::Eof
                    | ttrpc::Error::Socket(_)
                    // What ttrpc has no kind for: a connection that ended before this call was sent, or an answer
                    // that is none. The rest of it can't be: calls have no deadline and a length that was checked.
                    | ttrpc::Error::Others(_)
            ),
            _ => false,
        }
    }

    /// The shim's own words, where the shim answered with an error.
    pub fn shim_message(&self) -> Option<&str> {
        match self {
            Self::Call {
                source: ttrpc::Error::RpcStatus(status),
                ..
            } => Some(status.message()),
            Self::Exit { output, .. } => Some(output),
            _ => None,
        }
    }
}
