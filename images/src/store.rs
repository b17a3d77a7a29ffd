//! The store: images by digest.

use std::io;
use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;

use crate::{Credentials, Progress, Reference};

/// Where the store lies and what it uses.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The store on the shared file system, normally `~/.hpk/store`.
    pub root: PathBuf,
    /// `registries.yaml` in K3s's form; a file that doesn't exist is as good as none.
    pub registries: Option<PathBuf>,
    /// Node-local scratch for downloads; needs about four times an image's compressed size.
    pub local_dir: PathBuf,
}

/// When to ask the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Resolve the tag each time; download what isn't there.
    Always,
    /// Ask only where the store doesn't know the reference.
    IfNotPresent,
    /// Never ask.
    Never,
}

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// What was asked for.
    pub reference: Reference,
    /// Digest of the manifest for this platform, `sha256:…`; names the image in the store.
    pub digest: String,
    /// The image's config.
    pub config: ImageConfiguration,
    /// The squashfs.
    pub sqfs: PathBuf,
    /// Size of the squashfs, bytes.
    pub size: u64,
}

/// What kind of failure an [`Error`] is; for a caller's reason codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Not there, and policy Never.
    NeverPull,
    /// The registry says there is no such image.
    NotFound,
    /// The registry wants other credentials.
    Unauthorized,
    /// No endpoint could be reached.
    Unreachable,
    /// A disk is full.
    NoSpace,
    /// What arrived is not what was promised.
    Corrupt,
    /// The configuration (registries.yaml) is wrong.
    Config,
    /// Anything else.
    Other,
}

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Policy Never.
    #[error("{reference} is not in the store, and the pull policy is Never")]
    NeverPull {
        /// What was asked for.
        reference: Reference,
    },
    /// A file of the store.
    #[error("{action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

/// The image store of one user.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
}

impl StoreConfig {
    /// `HPK_STORE` (else `store` in `HPK_HOME`, else `~/.hpk/store`), `HPK_REGISTRIES` (else `registries.yaml` beside),
    /// `HPK_LOCAL_DIR` (else `/var/lib/hpk/images` where that can be made, else the temporary folder).
    pub fn from_env() -> Result<Self, Error> {
        unimplemented!()
    }
}

impl Store {
    /// Opens the store, making its folders (0700).
    pub async fn open(config: StoreConfig) -> Result<Self, Error> {
        Ok(Store { config })
    }

    /// Gives the image for `reference`, pulling it if `policy` and its absence ask for it.
    pub async fn resolve_and_ensure(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        credentials: Option<Credentials>,
        progress: &dyn Progress,
    ) -> Result<Image, Error> {
        let _ = (reference, policy, credentials, progress, &self.config);
        unimplemented!()
    }

    /// The image for `reference`, if the store has it; asks no registry.
    pub async fn find(&self, reference: &Reference) -> Result<Option<Image>, Error> {
        let _ = reference;
        unimplemented!()
    }

    /// All images, one entry per reference.
    pub async fn list(&self) -> Result<Vec<Image>, Error> {
        unimplemented!()
    }

    /// Removes the image `digest` and the references to it; an unknown one is no error.
    pub async fn remove(&self, digest: &str) -> Result<(), Error> {
        let _ = digest;
        unimplemented!()
    }
}
