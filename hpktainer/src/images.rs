//! `hpktainer images [prune]`

use std::str::FromStr;
use std::time::Duration;

use hpk_images::{Image, Reference, Store};

use crate::config;
use crate::format::{Format, print, table};

/// Arguments of `images`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Only references
    #[arg(short, long)]
    quiet: bool,
    /// json: an object for each reference on a line of its own; or a template, e.g. {{.Reference}}
    #[arg(long, conflicts_with = "quiet")]
    format: Option<Format>,
    /// Only those of this name, whatever their tags, or of this tag
    image: Option<Wanted>,
}

/// A name, and whether any tag of it will do.
#[derive(Debug, Clone)]
struct Wanted {
    name: Reference,
    any_tag: bool,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name: Reference = text
            .parse()
            .map_err(|e: hpk_images::reference::ParseError| e.to_string())?;
        let last = text.rsplit('/').next().unwrap_or(text);
        Ok(Self {
            name,
            any_tag: !last.contains([':', '@']),
        })
    }
}

impl Wanted {
    fn is(&self, reference: &Reference) -> bool {
        let of = |it: &Reference| (it.registry().to_owned(), it.repository().to_owned());
        *reference == self.name || (self.any_tag && of(reference) == of(&self.name))
    }
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
            print(&image.digest)?;
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
    let mut rows = vec![["REFERENCE", "DIGEST", "BYTES"].map(str::to_owned).to_vec()];
    for image in store.list().await? {
        if args
            .image
            .as_ref()
            .is_some_and(|wanted| !wanted.is(&image.reference))
        {
            continue;
        }
        match &args.format {
            _ if args.quiet => print(&image.reference)?,
            Some(format) => print(format.line(&describe(&image))?)?,
            None => {
                let digest = image.digest.trim_start_matches("sha256:").get(..12);
                rows.push(vec![
                    image.reference.to_string(),
                    digest.unwrap_or_default().to_owned(),
                    image.size.to_string(),
                ]);
            }
        }
    }
    if !args.quiet && args.format.is_none() {
        table(&rows).iter().try_for_each(print)?;
    }
    Ok(0)
}

fn describe(image: &Image) -> serde_json::Value {
    serde_json::json!({
        "Reference": image.reference.to_string(),
        "Repository": format!("{}/{}", image.reference.registry(), image.reference.repository()),
        "Tag": image.reference.tag(),
        "Digest": image.digest,
        "ID": image.config_digest,
        "Size": image.size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_stands_for_all_its_tags() {
        let is_of = |reference: &str, wanted: &str| {
            let wanted: Wanted = wanted.parse().unwrap();
            wanted.is(&reference.parse().unwrap())
        };
        assert!(is_of("busybox:1.37", "busybox"));
        assert!(is_of("busybox:1.37", "docker.io/library/busybox:1.37"));
        assert!(!is_of("busybox:1.36", "busybox:1.37"));
        assert!(!is_of("busybox:1.36", "busybox:latest"));
        assert!(!is_of("nginx:1", "busybox"));
    }
}
