//! The claim on an image, so that nobody removes it while a container runs on it.

use anyhow::Context as _;
use hpk_images::{Kept, Store};

use crate::container::Places;
use crate::image::{self, Root};
use crate::run::Args;

/// An image that is held until [`Claim::end`].
#[derive(Debug)]
pub struct Claim(Kept);

/// Gets the image for container `id`, and claims it if it is the store's; one that was removed in between is got again.
pub async fn claim(
    store: &Store,
    args: &Args,
    id: &str,
    places: &Places,
) -> anyhow::Result<(Option<Claim>, Root)> {
    let get = || image::get(store, &args.image.of, args.pull, args.quiet, places);
    let mut root = get().await?;
    let Root::Stored(_) = &root else {
        return Ok((None, root));
    };
    let claims = store.claims(&format!("hpktainer-{id}")).await?;
    while let Root::Stored(image) = &root
        && !claims.add(&image.digest).await?
    {
        root = get().await?;
    }
    let kept = claims.keep(|error| {
        tracing::warn!(%error, "the claim on the image could not be renewed");
    });
    Ok((Some(Claim(kept)), root))
}

impl Claim {
    /// Gives the image back. One that can't be given back ends by itself.
    pub async fn end(self) -> anyhow::Result<()> {
        self.0.end().await.context("giving the image back")
    }
}
