//! The bubble's image: where it is looked for, and how it comes to where Apptainer can start it.
//!
//! - `find`: which one it is; asks no registry
//! - `fetch`: from a tar or a registry into the image store, once for the cluster
//! - `progress`: what the job's output tells of that
//! - `stale`: what images of older tars have left

mod fetch;
mod find;
mod progress;
mod stale;

use std::fmt;
use std::path::PathBuf;

use hpk_images::{Newest, Reference};

pub use fetch::{Ready, fetch};
pub use find::Places;

/// The file that is the image, beside the programs or in `~/.hpk/images`.
const SIF: &str = "hpk-bubble.sif";
/// Its name in tars and registries.
const NAME: &str = "hpk-bubble";

/// The image that the bubbles are to start from.
#[derive(Debug)]
pub enum Found {
    /// What Apptainer starts as it is: a SIF, a squashfs, a folder.
    File(PathBuf),
    /// In a tar of the user's, with HPK_DEV=1.
    Tar(Box<Newest>),
    /// In a registry.
    Registry {
        reference: Reference,
        /// What names it.
        named_by: String,
    },
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Tar(tar) => write!(f, "{} in {} (HPK_DEV=1)", tar.digest(), tar.path.display()),
            Self::Registry {
                reference,
                named_by,
            } => write!(f, "{reference} (named by {named_by})"),
        }
    }
}
