//! `hpktainer stop`

use std::time::Duration;

use hpk_images::process_defaults::signal_number;

use crate::config::Config;
use crate::container::{self, Places};
use crate::format::print;
use crate::{sweep, task};

/// Arguments of `stop`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds between asking and killing
    #[arg(short, long, alias = "timeout", default_value_t = 10)]
    time: u64,
    /// What to ask with, by default what the image says, else TERM
    #[arg(short, long, value_parser = parse_signal, value_name = "SIGNAL")]
    signal: Option<u32>,
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// A signal by name or number.
pub fn parse_signal(text: &str) -> Result<u32, String> {
    signal_number(text)
        .ok_or_else(|| format!("{text:?} is no signal: expected e.g. TERM, SIGHUP or 9"))
}

/// Stops containers; one that has ended is no error.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    container::each(&args.containers, async |wanted| {
        let mut record = container::find(config, wanted)?;
        if record.exit.is_none() {
            // Its own hpktainer, if it still runs, sees the end and cleans up, too; each step bears that.
            let code = match task::reach(&Places::of(config, &record.id)).await? {
                Some(shim) => {
                    let patience = Duration::from_secs(args.time);
                    let signal = args.signal.unwrap_or(record.stop_signal);
                    task::stop(&shim, &record.id, signal, patience).await?
                }
                None => 128 + libc::SIGKILL.unsigned_abs(),
            };
            settle(config, &mut record, code).await?;
        }
        print(wanted)
    })
    .await
}

/// Leaves the cleaning up to the container's own hpktainer for a moment, then does it.
async fn settle(config: &Config, record: &mut container::Record, code: u32) -> anyhow::Result<()> {
    match sweep::settled(config, record).await? {
        None => return Ok(()), // it was run with --rm
        Some(now) if now.exit.is_some() => return Ok(()),
        Some(_) => {}
    }
    task::remove(config, record).await?;
    record.exit = Some(code);
    record.save(config)
}
