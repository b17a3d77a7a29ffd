//! `logs`.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use clap::Args;
use time::OffsetDateTime;

use super::Container;
use super::records::Records;
use crate::pod::record::Instance;
use crate::server::access::Run;
use crate::server::logs::follow::{Follower, Life};
use crate::server::logs::options::LogOptions;
use crate::text::parse_duration;
use hpk_logs::Stream;

#[derive(Debug, Args)]
pub struct Options {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Of the run before this one
    #[arg(short, long)]
    previous: bool,
    /// A time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Only so many lines from the end
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only what is no older, e.g. 90s, 5m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    #[command(flatten)]
    container: Container,
}

/// Prints a container's log, stderr to stderr.
pub async fn print(options: Options) -> Result<()> {
    let found = options.container.find()?;
    let run = match options.previous {
        false => found.run,
        true => {
            let record = found.pod.containers.get(&found.name);
            let previous = record.and_then(|record| record.previous.clone());
            previous.with_context(|| format!("container {} has had no run before", found.name))?
        }
    };
    if run.log.as_os_str().is_empty() {
        bail!("container {} has no log on this node", found.name);
    }
    let wanted = LogOptions {
        follow: options.follow,
        since: options.since.map(|since| OffsetDateTime::now_utc() - since),
        timestamps: options.timestamps,
        tail: options.tail,
        ..LogOptions::default()
    };
    let life = Written {
        run_dir: options.container.place.run_dir,
    };
    let mut follower = Follower::of(Box::new(life), logged(&run), wanted);
    while let Some(pieces) = follower.next().await? {
        for (stream, piece) in pieces {
            let printed = match stream {
                Stream::Stdout => io::stdout().write_all(&piece),
                Stream::Stderr => io::stderr().write_all(&piece),
            };
            match printed.and_then(|()| io::stdout().flush()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                printed => printed.context("print the log")?,
            }
        }
    }
    Ok(())
}

fn logged(run: &Instance) -> Run {
    Run {
        id: run.id.clone(),
        bundle: run.bundle.clone(),
        shim_address: String::new(),
        log: run.log.clone(),
        stdin: None,
        running: run.is_running(),
    }
}

/// Whether it runs, as it is written down.
struct Written {
    run_dir: PathBuf,
}

#[async_trait]
impl Life for Written {
    async fn has_ended(&self, run: &Run) -> bool {
        // What can't be read now may be read the next time; the folder itself goes with the node only.
        let Ok(records) = Records::read(&self.run_dir) else {
            return false;
        };
        !records
            .containers()
            .any(|found| found.run.id == run.id && found.run.is_running())
    }
}
