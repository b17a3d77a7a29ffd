//! `hpktainer images`

use hpk_images::Store;

use crate::config;

/// Arguments of `images`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only references
    #[arg(short, long)]
    quiet: bool,
}

/// One line per reference.
pub async fn main(args: Args) -> anyhow::Result<u8> {
    let store = Store::open(config::store()?).await?;
    if !args.quiet {
        println!("{:<50} {:<14} {:>12}", "REFERENCE", "DIGEST", "BYTES");
    }
    for image in store.list().await? {
        match args.quiet {
            true => println!("{}", image.reference),
            false => {
                let short = image
                    .digest
                    .trim_start_matches("sha256:")
                    .get(..12)
                    .unwrap_or_default();
                println!(
                    "{:<50} {short:<14} {:>12}",
                    image.reference.to_string(),
                    image.size
                );
            }
        }
    }
    Ok(0)
}
