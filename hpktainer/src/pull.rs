//! `hpktainer pull REF`

use anyhow::Context as _;
use hpk_images::{Image, PullPolicy, Reference, Store, StoreConfig};

use crate::bars::Bars;

/// Arguments of `pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, e.g. docker://busybox:1.36
    reference: Reference,
    /// No progress
    #[arg(short, long)]
    quiet: bool,
}

/// Resolves the tag anew and prints the image's digest.
pub async fn main(args: Args) -> anyhow::Result<u8> {
    let image = image(&args.reference, PullPolicy::Always, args.quiet).await?;
    println!("{}", args.reference.with_digest(&image.digest));
    Ok(0)
}

/// The image, pulled with progress where it must be.
pub async fn image(
    reference: &Reference,
    policy: PullPolicy,
    quiet: bool,
) -> anyhow::Result<Image> {
    let store = Store::open(StoreConfig::from_env()?).await?;
    let bars = Bars::new(quiet);
    let image = store
        .resolve_and_ensure(reference, policy, None, &bars)
        .await;
    bars.finish();
    image.with_context(|| format!("no image {reference}"))
}
