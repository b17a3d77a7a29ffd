//! What can go wrong with the store.

use std::io;
use std::path::{Path, PathBuf};

use crate::{lease, limits, manifest, merge, pack, policy, registries, source};

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
    /// It is beyond what an image may ask of a node.
    TooLarge,
    /// The user's policy doesn't let it in.
    Refused,
    /// The configuration (registries.yaml, policy.json, environment) is wrong.
    Config,
    /// Anything else.
    Other,
}

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Policy Never.
    #[error("{reference} is not in the store, and the pull policy is Never")]
    NeverPull {
        /// What was asked for.
        reference: String,
    },
    /// registries.yaml is wrong.
    #[error(transparent)]
    Registries(#[from] registries::Error),
    /// policy.json is wrong.
    #[error(transparent)]
    Policy(#[from] policy::Error),
    /// The policy doesn't let it in.
    #[error("{reference} is refused")]
    Refused {
        /// What was asked for.
        reference: String,
        /// Why.
        #[source]
        refusal: policy::Refusal,
    },
    /// A local image would pass for a registry's that the policy doesn't let in as it is.
    #[error(
        "{reference} can't be a local image's name: policy.json restricts the registry's images of it; name it otherwise, such as localhost/NAME"
    )]
    RestrictedName {
        /// The name.
        reference: String,
    },
    /// A local image is named by the digest of another.
    #[error(
        "{reference} is another image's name: this one's digest is {digest}; name it by a tag, or copy an index whole (skopeo copy --all)"
    )]
    OthersDigest {
        /// The name.
        reference: String,
        /// The image's.
        digest: String,
    },
    /// Every endpoint failed.
    #[error("pulling {reference}: {}", source::listed(.failures))]
    Endpoints {
        /// What was asked for.
        reference: String,
        /// What each said, in the order of asking.
        failures: Vec<source::Error>,
    },
    /// A blob could not be had from the endpoint that had the manifest, nor from those after it.
    #[error("pulling {name}")]
    Blob {
        /// Image.
        name: String,
        /// Why.
        #[source]
        source: Box<source::Error>,
    },
    /// Its manifest can't be used.
    #[error("pulling {name}")]
    Manifest {
        /// Image.
        name: String,
        /// Why.
        #[source]
        source: manifest::Error,
    },
    /// Its config can't be used.
    #[error("parsing the config of {name}")]
    Config {
        /// Image.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A layer's content is not what the config says.
    #[error("layer {digest} of {name} is corrupt: {reason}")]
    CorruptLayer {
        /// Image.
        name: String,
        /// The layer's blob.
        digest: String,
        /// Expected and actual.
        reason: String,
    },
    /// A layer is no tar.
    #[error("reading layer {digest} of {name}")]
    Layer {
        /// Image.
        name: String,
        /// The layer's blob.
        digest: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layers contradict each other.
    #[error("merging {name}")]
    Merge {
        /// Image.
        name: String,
        /// Why.
        #[source]
        source: merge::Error,
    },
    /// The squashfs could not be made.
    #[error("packing {name}")]
    Pack {
        /// Image.
        name: String,
        /// Why.
        #[source]
        source: pack::Error,
    },
    /// A disk is full, or a quota reached.
    #[error("no space in {dir}: {need} needed, {available} bytes free")]
    NoSpace {
        /// The folder.
        dir: PathBuf,
        /// `N bytes`, or `more`.
        need: String,
        /// Bytes free for this user.
        available: u64,
    },
    /// There is no node-local folder.
    #[error("finding a node-local folder")]
    Local(#[from] crate::private::Error),
    /// A local tar or layout can't be used.
    #[error("importing images")]
    Import(#[from] source::local::OpenError),
    /// One of several in it has neither name nor tag.
    #[error(
        "an image in {path} has neither a name nor a tag; take each by itself, as {path}:@POSITION, from @0 on"
    )]
    NoName {
        /// The file.
        path: PathBuf,
    },
    /// A setting is wrong.
    #[error(transparent)]
    Setting(#[from] limits::SettingError),
    /// The lock.
    #[error(transparent)]
    Lease(#[from] lease::Error),
    /// A pull that got nowhere for [`lease::STALL`].
    #[error("pulling {name}: no progress for {} s", lease::STALL.as_secs())]
    Hangs {
        /// Image.
        name: String,
    },
    /// A file of the store or the scratch folder.
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
    /// A file of the store doesn't hold what it should.
    #[error("{path} is damaged; remove it to have the image pulled again")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Neither HOME nor HPK_HOME nor HPK_STORE says where the store is.
    #[error("no place for the image store: set HOME, HPK_HOME or HPK_STORE")]
    NoHome,
    /// A task of ours ended too early.
    #[error("a task was cut off: {0}")]
    Interrupted(String),
}

impl Error {
    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NeverPull { .. } => ErrorKind::NeverPull,
            Self::Refused { .. } | Self::RestrictedName { .. } => ErrorKind::Refused,
            Self::Registries(_)
            | Self::Policy(_)
            | Self::Setting(_)
            | Self::NoHome
            | Self::Local(_)
            | Self::NoName { .. } => ErrorKind::Config,
            Self::Endpoints { failures, .. } => kind_of_all(failures),
            Self::Blob { source, .. } => source_kind(source),
            Self::Manifest { .. } if self.is_foreign() => ErrorKind::NotFound,
            Self::Manifest {
                source: manifest::Error::TooManyLayers(_),
                ..
            }
            | Self::Merge {
                source: merge::Error::LongPath { .. } | merge::Error::Paths { .. },
                ..
            } => ErrorKind::TooLarge,
            Self::Layer { source, .. } if is_exceeded(source) => ErrorKind::TooLarge,
            Self::Manifest { .. }
            | Self::Config { .. }
            | Self::CorruptLayer { .. }
            | Self::Layer { .. }
            | Self::Merge { .. }
            | Self::OthersDigest { .. }
            | Self::Import(_) => ErrorKind::Corrupt,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Pack { .. }
            | Self::Lease(_)
            | Self::Hangs { .. }
            | Self::Io { .. }
            | Self::Record { .. }
            | Self::Interrupted(_) => ErrorKind::Other,
        }
    }

    /// Whether the image is for other machines.
    pub(crate) fn is_foreign(&self) -> bool {
        use manifest::Error::NoPlatform;
        matches!(self, Self::Manifest { source, .. } if matches!(source, NoPlatform { .. }))
    }

    /// A failed operation on a file, told apart by whether the disk is full.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if is_full(&source) {
            return Self::full(path, None);
        }
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// The disk of `path` is full.
    pub(crate) fn full(path: &Path, need: Option<u64>) -> Self {
        let dir = path.ancestors().find(|p| p.is_dir()).unwrap_or(path);
        Self::NoSpace {
            dir: dir.to_owned(),
            need: need.map_or_else(|| "more".to_owned(), |n| format!("{n} bytes")),
            available: available(dir).unwrap_or_default(),
        }
    }
}

/// Bytes an ordinary user may still write at `dir`.
pub(crate) fn available(dir: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

fn is_exceeded(error: &io::Error) -> bool {
    let inner = error.get_ref();
    inner.is_some_and(|inner| inner.is::<limits::Exceeded>())
}

fn source_kind(error: &source::Error) -> ErrorKind {
    match error {
        source::Error::NotFound { .. } => ErrorKind::NotFound,
        source::Error::Unauthorized { .. } => ErrorKind::Unauthorized,
        source::Error::Transfer { .. } | source::Error::GivenUp { .. } => ErrorKind::Unreachable,
        source::Error::Corrupt { .. } => ErrorKind::Corrupt,
        source::Error::Tls { .. } => ErrorKind::Config,
        source::Error::Local { .. } => ErrorKind::Other,
        source::Error::All(failures) => kind_of_all(failures),
    }
}

/// The registry proper is asked last and knows best, unless it can't be reached.
fn kind_of_all(failures: &[source::Error]) -> ErrorKind {
    let mut kinds = failures.iter().rev().map(source_kind);
    kinds
        .find(|kind| *kind != ErrorKind::Unreachable)
        .unwrap_or(ErrorKind::Unreachable)
}
