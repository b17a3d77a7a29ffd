//! What was found, as a path that every host can start from: a tar's or a registry's image becomes a squashfs in the
//! image store, which lies on the shared file system, and stays there while the cluster runs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use hpk_images::{Image, Kept, Newest, Progress, PullPolicy, Reference, Store, StoreConfig};

use super::progress::Lines;
use super::{Found, NAME, stale};
use crate::local::Passing;
use crate::settings;

/// An image that hosts can start.
#[derive(Debug)]
pub struct Ready {
    /// A SIF, a squashfs or a folder.
    pub path: PathBuf,
    kept: Option<Kept>,
}

impl Ready {
    /// The cluster needs it no more.
    pub async fn end(self) -> Result<()> {
        match self.kept {
            Some(kept) => kept.end().await.context("giving the bubble's image back"),
            None => Ok(()),
        }
    }
}

/// Gets it for that cluster, and says what it does.
pub async fn fetch(found: Found, hpk_home: &Path, cluster: &str) -> Result<Ready> {
    println!("hpk: the bubble's image is {found}");
    let wanted = match found {
        Found::File(path) => return Ok(Ready { path, kept: None }),
        Found::Tar(tar) => Wanted::Tar(dev_name(&tar.digest())?, tar),
        Found::Registry { reference, .. } => Wanted::Registry(reference),
    };
    // Downloads and what is made of them: node-local, and found by the next job where this one is killed.
    let passing = Passing::make(cluster, &settings::local_parent())?;
    let config = StoreConfig::with_local_dir(passing.path().join("images"))?;
    let store = Store::open(config).await?;
    let progress = Lines::default();
    let claims = store.claims(&format!("launch-{cluster}")).await?;
    let mut image = wanted.get(&store, &progress).await?;
    // One that was removed in between is got again.
    while !claims.add(&image.digest).await? {
        image = wanted.get(&store, &progress).await?;
    }
    if !progress.stored() {
        println!("hpk: it is in the image store already");
    }
    let kept = claims.keep(|error| eprintln!("hpk: keeping the bubble's image: {error}"));
    if let Wanted::Tar(_, tar) = &wanted
        && let Err(error) = stale::remove(&store, &image.digest, tar.written, hpk_home).await
    {
        eprintln!("hpk: what images of older tars have left: {error:#}");
    }
    Ok(Ready {
        path: image.sqfs,
        kept: Some(kept),
    })
}

enum Wanted {
    Tar(Reference, Box<Newest>),
    Registry(Reference),
}

impl Wanted {
    async fn get(&self, store: &Store, progress: &dyn Progress) -> Result<Image> {
        let image = match self {
            Self::Tar(name, tar) => store.take_newest(tar, name, progress).await,
            // A tag may have been moved; what a digest names is asked for once.
            Self::Registry(reference) => {
                let get = store.resolve_and_ensure(reference, PullPolicy::Always, None, progress);
                get.await
            }
        };
        image.context(
            "getting the bubble's image (where the host can't: hpk-bubble.sif beside the programs needs nothing of it)",
        )
    }
}

/// Each tar's image has a name of its own, so that those that are stale can be told.
fn dev_name(digest: &str) -> Result<Reference> {
    let digits = digest.trim_start_matches("sha256:");
    let name = format!("localhost/{NAME}:{}{digits}", stale::TAG);
    name.parse().context("naming the tar's image")
}
