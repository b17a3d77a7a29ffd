//! `hpktainer pull REF`

use hpk_images::source::place::Place;
use hpk_images::{PullPolicy, Reference, Store};

use crate::format::print;
use crate::{config, image};

/// Arguments of `pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, e.g. docker://busybox:1.36, or local ones: docker-archive:TAR[:TAG], oci-archive:TAR[:TAG], oci:DIR[:TAG]
    image: String,
    /// Another name for a local image
    #[arg(long)]
    name: Option<Reference>,
    /// No progress
    #[arg(short, long)]
    quiet: bool,
}

/// Resolves the tag anew, or imports, and prints each image's digest.
pub async fn main(args: Args) -> anyhow::Result<u8> {
    let store = Store::open(config::store()?).await?;
    let place = image::ARCHIVES
        .iter()
        .find_map(|form| args.image.strip_prefix(form));
    let images = match place {
        Some(place) => {
            let place = Place::find(place);
            image::import(&store, &place, args.name.as_ref(), args.quiet).await?
        }
        None => {
            let reference = args.image.parse()?;
            vec![image::pull(&store, &reference, PullPolicy::Always, args.quiet).await?]
        }
    };
    for image in images {
        print(image.reference.with_digest(&image.digest))?;
    }
    Ok(0)
}
