//! The claim on an image, so that nobody removes it while a container runs on it.

use anyhow::Context as _;
use hpk_images::Store;
use hpk_images::store::Claims;
use hpk_images::store::claims::BEAT;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::container::Places;
use crate::image::{self, Root};
use crate::run::Args;

/// An image that is held until [`Claim::end`].
#[derive(Debug)]
pub struct Claim {
    claims: Claims,
    beating: JoinHandle<()>,
    /// Its end is the beating's.
    stop: oneshot::Sender<()>,
}

/// Gets the image for container `id`, and claims it if it is the store's; one that was removed in between is got again.
pub async fn claim(
    store: &Store,
    args: &Args,
    id: &str,
    places: &Places,
) -> anyhow::Result<(Option<Claim>, Root)> {
    let get = || image::get(store, &args.image, args.pull, args.quiet, places);
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
    let (stop, stopped) = oneshot::channel();
    let beating = tokio::spawn(beat(claims.clone(), stopped));
    let claim = Claim {
        claims,
        beating,
        stop,
    };
    Ok((Some(claim), root))
}

async fn beat(claims: Claims, mut stopped: oneshot::Receiver<()>) {
    let mut beats = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            _ = beats.tick() => {}
        }
        if let Err(error) = claims.beat().await {
            tracing::warn!(%error, "the claim on the image could not be renewed");
        }
    }
}

impl Claim {
    /// Gives the image back. One that can't be given back ends by itself.
    pub async fn end(self) -> anyhow::Result<()> {
        // A beat that is under way would write the claim anew.
        drop(self.stop);
        self.beating.await.context("ending the claim's renewal")?;
        self.claims.end().await.context("giving the image back")
    }
}
