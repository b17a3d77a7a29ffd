//! `hpktainer stop`

use std::time::Duration;

use crate::config::Config;
use crate::container::{self, Places};
use crate::task;

/// Arguments of `stop`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds between asking and killing
    #[arg(short, long, default_value_t = 10)]
    time: u64,
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Stops containers; one that has ended is no error.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    for wanted in &args.containers {
        let mut record = container::find(config, wanted)?;
        if record.exit.is_none() {
            // Its own hpktainer, if it still runs, sees the end and cleans up, too; each step bears that.
            let code = match task::reach(&Places::of(config, &record.id)).await? {
                Some(shim) => {
                    let patience = Duration::from_secs(args.time);
                    task::stop(&shim, &record.id, record.stop_signal, patience).await?
                }
                None => 128 + libc::SIGKILL.unsigned_abs(),
            };
            settle(config, &mut record, code).await?;
        }
        println!("{wanted}");
    }
    Ok(0)
}

/// Leaves the cleaning up to the container's own hpktainer for a moment, then does it.
async fn settle(config: &Config, record: &mut container::Record, code: u32) -> anyhow::Result<()> {
    const ROUNDS: u32 = 30;
    for _ in 0..ROUNDS {
        match container::find(config, &record.id) {
            Err(_) => return Ok(()), // it was run with --rm
            Ok(now) if now.exit.is_some() => return Ok(()),
            Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    task::remove(config, record).await?;
    record.exit = Some(code);
    record.save(config)
}
