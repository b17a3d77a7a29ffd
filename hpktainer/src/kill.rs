//! `hpktainer kill`

use anyhow::bail;

use crate::config::Config;
use crate::container::{self, Places};
use crate::format::print;
use crate::stop::parse_signal;
use crate::task;

/// Arguments of `kill`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to send
    #[arg(short, long, value_parser = parse_signal, default_value = "KILL")]
    signal: u32,
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Sends a signal to the programs of containers, which must run.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    container::each(&args.containers, async |wanted| {
        let record = container::find(config, wanted)?;
        let shim = match record.exit {
            None => task::reach(&Places::of(config, &record.id)).await?,
            Some(_) => None,
        };
        let Some(shim) = shim else {
            bail!("container {wanted} is not running");
        };
        let sent = shim.kill(&record.id, "", args.signal, false).await;
        sent.map_err(|e| task::in_its_words(e, "sending the signal"))?;
        print(wanted)
    })
    .await
}
