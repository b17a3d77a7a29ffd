//! Images mounted read-only, once per node, by a squashfuse process that outlives whoever started it.

use std::path::{Path, PathBuf};

use crate::Image;

/// Mounts images below one folder.
#[derive(Debug)]
pub struct Mounter {
    root: PathBuf,
}

/// Why an image could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("mounting")]
pub struct Error;

impl Mounter {
    /// `root` is node-local, normally `/run/hpk/images`.
    pub fn new(root: impl AsRef<Path>) -> Self {
        Self {
            root: root.as_ref().to_owned(),
        }
    }

    /// The folder where `image` is mounted, mounting it first if it isn't. Idempotent, and good across processes.
    pub async fn ensure(&self, image: &Image) -> Result<PathBuf, Error> {
        let _ = (image, &self.root);
        unimplemented!()
    }

    /// Unmounts the image `digest`; one that isn't mounted is no error. Overlays that stand on it keep working.
    pub async fn release(&self, digest: &str) -> Result<(), Error> {
        let _ = digest;
        unimplemented!()
    }

    /// Digests mounted now.
    pub async fn mounted(&self) -> Result<Vec<String>, Error> {
        unimplemented!()
    }
}
