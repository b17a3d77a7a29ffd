//! `hpktainer pull REF`

use std::path::Path;

use anyhow::Context as _;
use hpk_images::{Image, PullPolicy, Reference, Store};

use crate::bars::Bars;
use crate::config;

/// Arguments of `pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, e.g. docker://busybox:1.36, or a local one: docker-archive:TAR, oci-archive:TAR, oci:DIR
    image: String,
    /// Name for a local image that has none, or another one
    #[arg(long)]
    name: Option<Reference>,
    /// No progress
    #[arg(short, long)]
    quiet: bool,
}

/// Resolves the tag anew, or imports, and prints each image's digest.
pub async fn main(args: Args) -> anyhow::Result<u8> {
    let forms = ["docker-archive:", "oci-archive:", "oci:"];
    let images = match forms.iter().find_map(|f| args.image.strip_prefix(f)) {
        Some(path) => {
            let store = Store::open(config::store()?).await?;
            let bars = Bars::new(args.quiet);
            let images = store
                .import(Path::new(path), args.name.as_ref(), &bars)
                .await;
            bars.finish();
            images.with_context(|| format!("no image from {path}"))?
        }
        None => {
            let store = Store::open(config::store()?).await?;
            vec![image(&store, &args.image.parse()?, PullPolicy::Always, args.quiet).await?]
        }
    };
    for image in images {
        println!("{}", image.reference.with_digest(&image.digest));
    }
    Ok(0)
}

/// The image, pulled with progress where it must be.
pub async fn image(
    store: &Store,
    reference: &Reference,
    policy: PullPolicy,
    quiet: bool,
) -> anyhow::Result<Image> {
    let bars = Bars::new(quiet);
    let image = store
        .resolve_and_ensure(reference, policy, None, &bars)
        .await;
    bars.finish();
    image.with_context(|| format!("no image {reference}"))
}
