//! Where manifests and blobs come from.

pub mod endpoints;
mod failure;
pub mod local;
pub mod place;
pub mod registry;

use async_trait::async_trait;

use crate::manifest::Descriptor;
use crate::policy::signature::Signature;
use crate::progress::Progress;

/// A place that has one image, by manifest and blobs.
#[async_trait]
pub trait Source: Send + Sync {
    /// The manifest named `digest`, or the one the reference names; verified, with its digest.
    async fn manifest(&self, digest: Option<&str>) -> Result<(Vec<u8>, String), Error>;

    /// Writes the blob to `file` (empty before, verified after); tries again what may pass.
    async fn blob(
        &self,
        blob: &Descriptor,
        file: &mut tokio::fs::File,
        progress: &dyn Progress,
    ) -> Result<(), Error>;

    /// The signatures attached to the image or index `digest`; none where the place can't have any.
    async fn signatures(&self, digest: &str) -> Result<Vec<Signature>, Error>;
}

/// Why a source gave no manifest or blob.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such image.
    #[error("{place} has no {what}")]
    NotFound {
        /// The source.
        place: String,
        /// Manifest or blob.
        what: String,
    },
    /// Other credentials are wanted.
    #[error("{place} refuses {what} to {who}")]
    Unauthorized {
        /// The source.
        place: String,
        /// Manifest or blob.
        what: String,
        /// `anonymous callers` or `user NAME`.
        who: String,
        /// The registry's words.
        #[source]
        source: Box<oci_client::errors::OciDistributionError>,
    },
    /// It could not be asked, or broke off.
    #[error("getting {what} from {place}")]
    Transfer {
        /// The source.
        place: String,
        /// Manifest or blob.
        what: String,
        /// Why.
        #[source]
        source: Box<oci_client::errors::OciDistributionError>,
    },
    /// What came is not what was asked for.
    #[error("{what} from {place} is corrupt: {reason}")]
    Corrupt {
        /// The source.
        place: String,
        /// Manifest or blob.
        what: String,
        /// Expected and actual digest or size.
        reason: String,
    },
    /// The local file could not be written or read.
    #[error("storing {what}")]
    Local {
        /// Manifest or blob.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No HTTPS client can be made.
    #[error("setting up TLS for {place}: {reason}")]
    Tls {
        /// The endpoint.
        place: String,
        /// What is missing.
        reason: String,
    },
    /// It has failed before, for another part of the image.
    #[error("{place} was given up")]
    GivenUp {
        /// The endpoint.
        place: String,
    },
    /// Each of several endpoints failed.
    #[error("{}", listed(.0))]
    All(Vec<Error>),
}

impl Error {
    /// What the endpoints said, one after the other.
    pub(crate) fn of_all(mut failures: Vec<Self>) -> Self {
        match failures.len() {
            1 => failures.remove(0),
            _ => Self::All(failures),
        }
    }
}

/// Failures with their causes, on one line.
pub(crate) fn listed(failures: &[Error]) -> String {
    let texts: Vec<String> = failures.iter().map(|it| chain(it)).collect();
    texts.join("; ")
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
