//! `hpktainer rm`

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::fcntl::FlockArg;

use crate::config::Config;
use crate::container::{self, Places};
use crate::format::print;
use crate::locks::try_lock;
use crate::{claim, sweep, task};

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
    container::each(&args.containers, async |wanted| {
        let record = container::find(config, wanted)?;
        let status = task::status(config, &record).await?;
        if !args.force && matches!(status, task::Status::Running | task::Status::Created) {
            bail!("container {} is running (stop it, or rm -f)", record.name);
        }
        if !matches!(status, task::Status::Running) {
            // Its own hpktainer may just be cleaning up.
            sweep::settled(config, &record).await?;
        }
        task::remove(config, &record).await?;
        forget(&Places::of(config, &record.id))?;
        print(wanted)
    })
    .await
}

/// Removes record and log.
pub fn forget(places: &Places) -> anyhow::Result<()> {
    remove(&places.root)
}

/// Forgets a container that was run with --rm and is recorded as cleaned up. Those who follow its log have a moment to
/// learn that and to open what they haven't read.
pub async fn forget_by_itself(places: &Places) -> anyhow::Result<()> {
    const ROUNDS: u32 = 40;
    const LOOK: Duration = Duration::from_millis(50);
    for _ in 0..ROUNDS {
        let free = try_lock(&places.followers(), FlockArg::LockExclusiveNonblock)?;
        if free.is_some() {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    forget(places)
}

/// Removes what there is of container `id` before it has a record: an image that Apptainer made, its mount, its claim.
pub async fn abandon(places: &Places, id: &str) -> anyhow::Result<()> {
    task::unmount(places).await?;
    remove(&places.run)?;
    forget(places)?;
    claim::give_back(id).await
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    use std::io::ErrorKind::{DirectoryNotEmpty, NotFound};
    const ROUNDS: u32 = 10;
    let mut round = 0;
    loop {
        round += 1;
        match fs::remove_dir_all(folder) {
            // Something in it went or came meanwhile: a record that was just written, a lock that a sweep has opened.
            Err(e)
                if round < ROUNDS
                    && matches!(e.kind(), DirectoryNotEmpty | NotFound)
                    && folder.exists() => {}
            Err(e) if e.kind() != NotFound => {
                return Err(e).with_context(|| format!("removing {}", folder.display()));
            }
            _ => return Ok(()),
        }
    }
}
