//! `hpktainer pull REF`

use std::path::Path;

use hpk_images::{PullPolicy, Reference, Store};

use crate::{config, image};

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
    let store = Store::open(config::store()?).await?;
    let path = image::ARCHIVES
        .iter()
        .find_map(|form| args.image.strip_prefix(form));
    let images = match path {
        Some(path) => {
            image::import(&store, Path::new(path), args.name.as_ref(), args.quiet).await?
        }
        None => {
            let reference = args.image.parse()?;
            vec![image::pull(&store, &reference, PullPolicy::Always, args.quiet).await?]
        }
    };
    for image in images {
        println!("{}", image.reference.with_digest(&image.digest));
    }
    Ok(0)
}
