//! `hpktainer rmi`

use anyhow::{Context as _, bail};
use hpk_images::Store;

use crate::config;
use crate::container;
use crate::format::print;
use crate::inspect::find_image;

/// Arguments of `rmi`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// References, digests or ids
    #[arg(required = true)]
    images: Vec<String>,
}

/// Removes images with all their names, and prints the digests; one that is in use stays.
pub async fn main(args: Args) -> anyhow::Result<u8> {
    let store = Store::open(config::store()?).await?;
    container::each(&args.images, async |wanted| {
        let image = find_image(&store, wanted).await?;
        let image = image.with_context(|| format!("no image {wanted:?}"))?;
        if !store.remove_unused(&image.digest).await? {
            bail!("image {wanted} is in use, or just being pulled");
        }
        print(&image.digest)
    })
    .await
}
