//! `hpktainer wait`

use std::time::Duration;

use anyhow::bail;

use crate::config::Config;
use crate::container::{self, Places};
use crate::format::print;
use crate::sweep;
use crate::task::{self, Status};

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Waits for the end of each container, and until its own hpktainer has cleaned up, and prints its exit code.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    container::each(&args.containers, async |wanted| {
        let record = container::find(config, wanted)?;
        let code = end_of(config, &record).await?;
        sweep::settled(config, &record).await?;
        print(code)
    })
    .await
}

async fn end_of(config: &Config, record: &container::Record) -> anyhow::Result<u32> {
    const LOOK: Duration = Duration::from_millis(100);
    loop {
        match task::status(config, record).await? {
            Status::Exited(code) => return Ok(code),
            Status::Created => tokio::time::sleep(LOOK).await,
            Status::Lost => bail!("how {} ended is not known", record.name),
            Status::Running => {
                if let Some(shim) = task::reach(&Places::of(config, &record.id)).await?
                    && let Ok(exit) = shim.wait(&record.id, "").await
                {
                    return Ok(exit.code);
                }
                // It is just going: what it left says more.
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}
