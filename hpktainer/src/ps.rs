//! `hpktainer ps`

use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::container::Record;
use crate::{container, inspect, task};

/// Arguments of `ps`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ended ones, too
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// json: an object for each container on a line of its own
    #[arg(long, value_parser = ["json"], conflicts_with = "quiet")]
    format: Option<String>,
}

/// One line per container, the newest first.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let json = args.format.is_some();
    if !args.quiet && !json {
        println!(
            "{:<14} {:<16} {:<40} {:<12} {:<8} {:<16} COMMAND",
            "ID", "NAME", "IMAGE", "STATUS", "AGE", "IP"
        );
    }
    for record in container::list(config)? {
        let status = task::status(config, &record).await?;
        if !args.all && !matches!(status, task::Status::Running | task::Status::Created) {
            continue;
        }
        if json {
            println!("{}", describe(&record, status, now));
            continue;
        }
        match args.quiet {
            true => println!("{}", record.id),
            false => println!(
                "{:<14} {:<16} {:<40} {:<12} {:<8} {:<16} {}",
                record.id,
                record.name,
                record.image,
                status.to_string(),
                age(now.saturating_sub(record.created)),
                record.ip.as_deref().unwrap_or("-"),
                record.command.join(" ")
            ),
        }
    }
    Ok(0)
}

/// Keys as Docker has them.
fn describe(record: &Record, status: task::Status, now: u64) -> serde_json::Value {
    let ports: Vec<String> = record.ports.iter().map(ToString::to_string).collect();
    serde_json::json!({
        "ID": record.id,
        "Names": record.name,
        "Image": record.image,
        "Command": record.command.join(" "),
        "CreatedAt": record.created,
        "RunningFor": age(now.saturating_sub(record.created)),
        "State": inspect::word(status),
        "Status": status.to_string(),
        "IP": record.ip,
        "Ports": ports.join(", "),
    })
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
