//! The claim on an image, so that nobody removes it while a container runs on it.
//!
//! The container's hpktainer shows it as living; who cleans up behind the container, be it another, gives it back.

use anyhow::Context as _;
use hpk_images::store::claims::end_of;
use hpk_images::{Kept, Store};

use crate::container::Places;
use crate::image::{self, Root};
use crate::run::Args;

/// An image whose claim is shown as living until [`Claim::leave`].
#[derive(Debug)]
pub struct Claim(Kept);

fn holder(id: &str) -> String {
    format!("hpktainer-{id}")
}

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
    let claims = store.claims(&holder(id)).await?;
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
    /// Leaves the claim to [`give_back`].
    pub async fn leave(self) -> anyhow::Result<()> {
        let left = self.0.stop().await;
        left.context("leaving the claim on the image")
    }
}

/// Gives back the image of container `id`, which is not mounted any more; one that has none is fine.
pub async fn give_back(id: &str) -> anyhow::Result<()> {
    let store = crate::config::store()?.root;
    let ended = end_of(&store, &holder(id)).await;
    ended.context("giving the image back")
}
