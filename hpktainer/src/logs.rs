//! `hpktainer logs`

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::config::Config;
use crate::container::{self, Places};
use crate::task;

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Name, id, or beginning of an id
    container: String,
}

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Prints what a detached container has put out so far (the newest 10 MiB), stderr to stderr; followed, until it ends.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    let record = container::find(config, &args.container)?;
    if !record.logged {
        bail!(
            "container {} ran in the foreground; its output went there",
            record.name
        );
    }
    let path = Places::of(config, &record.id).log();
    let mut log = Log::open(&path)?;
    let mut looks = tokio::time::interval(LOOK);
    loop {
        // Asked before the reading: what came until the end is still read.
        let ended = !args.follow || has_ended(config, &record.id).await?;
        log.print_new()?;
        if ended {
            return Ok(0);
        }
        looks.tick().await;
        log.follow_rotation(&path)?;
    }
}

async fn has_ended(config: &Config, id: &str) -> anyhow::Result<bool> {
    // One that was run with --rm goes with its record.
    let Some(record) = container::list(config)?.into_iter().find(|r| r.id == id) else {
        return Ok(true);
    };
    let status = task::status(config, &record).await?;
    Ok(!matches!(
        status,
        task::Status::Created | task::Status::Running
    ))
}

/// A log, read as far as its last whole line.
struct Log {
    file: BufReader<File>,
    inode: u64,
    /// The beginning of a line whose end hasn't come.
    begun: Vec<u8>,
}

impl Log {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let open = || -> io::Result<Self> {
            let file = File::open(path)?;
            Ok(Self {
                inode: file.metadata()?.ino(),
                file: BufReader::new(file),
                begun: Vec::new(),
            })
        };
        open().with_context(|| format!("reading {}", path.display()))
    }

    fn print_new(&mut self) -> anyhow::Result<()> {
        let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
        loop {
            let read = self.file.read_until(b'\n', &mut self.begun);
            read.context("reading the log")?;
            if !self.begun.ends_with(b"\n") {
                out.flush()?;
                return Ok(());
            }
            if let Some((is_error, text)) = parse_line(&self.begun) {
                let target: &mut dyn Write = if is_error { &mut err } else { &mut out };
                target.write_all(text)?;
            }
            self.begun.clear();
        }
    }

    /// The logger gives a full log another name and begins a new one: the old one is read to its end first.
    fn follow_rotation(&mut self, path: &Path) -> anyhow::Result<()> {
        match std::fs::metadata(path) {
            // Between the two, or gone with the container.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
            Ok(now) if now.ino() == self.inode => Ok(()),
            Ok(_) => {
                self.print_new()?;
                *self = Self::open(path)?;
                Ok(())
            }
        }
    }
}

/// CRI log format: `TIME STREAM TAG TEXT\n`; a partial line (tag P) has no newline of its own.
fn parse_line(line: &[u8]) -> Option<(bool, &[u8])> {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let stream = fields.nth(1)?;
    let tag = fields.next()?;
    let text = fields.next()?;
    let text = match tag {
        b"P" => text.strip_suffix(b"\n").unwrap_or(text),
        _ => text,
    };
    Some((stream == b"stderr", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_lines_are_joined_and_streams_told_apart() {
        assert_eq!(
            parse_line(b"t stdout F a b\n"),
            Some((false, &b"a b\n"[..]))
        );
        assert_eq!(parse_line(b"t stderr P a\n"), Some((true, &b"a"[..])));
        assert_eq!(parse_line(b"t stdout F \n"), Some((false, &b"\n"[..])));
        assert_eq!(parse_line(b"broken\n"), None);
    }
}
