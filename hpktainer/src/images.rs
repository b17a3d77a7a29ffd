//! `hpktainer images [prune]`

use std::time::Duration;

use hpk_images::Store;

use crate::config;

/// Arguments of `images`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Only references
    #[arg(short, long)]
    quiet: bool,
    /// json: an object for each reference on a line of its own
    #[arg(long, value_parser = ["json"], conflicts_with = "quiet")]
    format: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Remove the images that no container and no node of yours uses
    Prune {
        /// Only those that weren't used for so many hours
        #[arg(long, value_name = "HOURS", default_value_t = 0)]
        unused_for: u32,
    },
}

/// Prints the digests of what it has removed.
async fn prune(store: &Store, unused_for: Duration) -> anyhow::Result<u8> {
    let mut freed = 0;
    for image in store.removable(unused_for).await? {
        // By now somebody may pull it or have claimed it.
        if store.remove_unused(&image.digest).await? {
            println!("{}", image.digest);
            freed += image.size;
        }
    }
    eprintln!("{freed} bytes freed");
    Ok(0)
}

/// One line per reference.
pub async fn main(args: Args) -> anyhow::Result<u8> {
    let store = Store::open(config::store()?).await?;
    if let Some(Action::Prune { unused_for }) = args.action {
        const HOUR: u64 = 3600;
        return prune(&store, Duration::from_secs(u64::from(unused_for) * HOUR)).await;
    }
    let json = args.format.is_some();
    if !args.quiet && !json {
        println!("{:<50} {:<14} {:>12}", "REFERENCE", "DIGEST", "BYTES");
    }
    for image in store.list().await? {
        if json {
            let told = serde_json::json!({
                "Reference": image.reference.to_string(),
                "Digest": image.digest,
                "ID": image.config_digest,
                "Size": image.size,
            });
            println!("{told}");
            continue;
        }
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
