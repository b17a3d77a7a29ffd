//! `hpktainer stop`

use std::time::Duration;

use hpk_images::process_defaults::signal_number;

use crate::config::Config;
use crate::container::{self, Places, Record};
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
        let record = container::find(config, wanted)?;
        if !record.cleaned_up {
            let code = end(config, &args, &record).await?;
            // Its own hpktainer, if it still runs, sees the end and cleans up; for a moment it is left to that.
            if let Some(now) = sweep::settled(config, &record).await?
                && !now.cleaned_up
            {
                sweep::bury(config, now, code).await?;
            }
        }
        print(wanted)
    })
    .await
}

/// Ends the container, if it hasn't; gives its exit code.
async fn end(config: &Config, args: &Args, record: &Record) -> anyhow::Result<u32> {
    if let Some(code) = record.exit {
        return Ok(code);
    }
    match task::reach(&Places::of(config, &record.id)).await? {
        Some(shim) => {
            let patience = Duration::from_secs(args.time);
            let signal = args.signal.unwrap_or(record.stop_signal);
            task::stop(&shim, &record.id, signal, patience).await
        }
        None => Ok(sweep::KILLED),
    }
}
