//! `hpktainer rm`

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::config::Config;
use crate::container::{self, Places};
use crate::task;

/// Arguments of `rm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kill what still runs
    #[arg(short, long)]
    force: bool,
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Removes containers and whatever is left of them.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    for wanted in &args.containers {
        let record = container::find(config, wanted)?;
        let status = task::status(config, &record).await?;
        if !args.force && matches!(status, task::Status::Running | task::Status::Created) {
            bail!("container {} is running (stop it, or rm -f)", record.name);
        }
        task::remove(config, &record).await?;
        forget(&Places::of(config, &record.id))?;
        println!("{wanted}");
    }
    Ok(0)
}

/// Removes record and log.
pub fn forget(places: &Places) -> anyhow::Result<()> {
    remove(&places.root)
}

/// Removes what there is of a container before it has a record: an image that Apptainer made, and its mount.
pub async fn abandon(places: &Places) -> anyhow::Result<()> {
    task::unmount(places).await?;
    remove(&places.run)?;
    forget(places)
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    let mut removed = fs::remove_dir_all(folder);
    // A sweep may have opened the lock in it meanwhile, and made it anew.
    if let Err(e) = &removed
        && e.kind() == std::io::ErrorKind::DirectoryNotEmpty
    {
        removed = fs::remove_dir_all(folder);
    }
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
