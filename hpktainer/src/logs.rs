//! `hpktainer logs`

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::Config;
use crate::container::{self, Places};
use crate::task;

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on until the container ends, or the time of --until has come
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end, or all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = parse_tail)]
    tail: Tail,
    /// Only what is no older: 90s, 10m, 1h30m, or a time, 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<OffsetDateTime>,
    /// Only what is older
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<OffsetDateTime>,
    /// A time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Name, id, or beginning of an id
    container: String,
}

/// `--tail`; none for all.
type Tail = Option<usize>;

fn parse_tail(text: &str) -> Result<Tail, String> {
    match text {
        // So does Docker.
        "all" | "-1" => Ok(None),
        number => number
            .parse()
            .map(Some)
            .map_err(|_| "expected a number or all".to_owned()),
    }
}

fn parse_time(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    if let Ok(seconds) = text.parse() {
        return OffsetDateTime::from_unix_timestamp(seconds).map_err(|e| e.to_string());
    }
    let before = OffsetDateTime::now_utc().checked_sub(parse_duration(text)?);
    before.ok_or_else(|| format!("{text:?} is before all time"))
}

/// `90s`, `10m`, `1h30m`, as Go writes them; whole numbers only.
fn parse_duration(text: &str) -> Result<time::Duration, String> {
    let wrong = || {
        format!(
            "{text:?} is neither a time (2026-01-31T12:00:00Z) nor a duration (90s, 10m, 1h30m)"
        )
    };
    let mut seconds: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: i64 = rest[..end].parse().map_err(|_| wrong())?;
        let unit = match rest[end..].chars().next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            _ => return Err(wrong()),
        };
        let more = number
            .checked_mul(unit)
            .and_then(|more| seconds.checked_add(more));
        seconds = more.ok_or_else(wrong)?;
        rest = &rest[end + 1..];
    }
    match text {
        "" => Err(wrong()),
        _ => Ok(time::Duration::seconds(seconds)),
    }
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
    if let Some(lines) = args.tail {
        log.skip = count_lines(&path)?.saturating_sub(lines);
    }
    let wanted = Wanted {
        since: args.since,
        until: args.until,
        timestamps: args.timestamps,
    };
    let mut looks = tokio::time::interval(LOOK);
    loop {
        // Asked before the reading: what came until the end is still read.
        let is_past = args
            .until
            .is_some_and(|until| OffsetDateTime::now_utc() >= until + LOOK);
        let ended = !args.follow || is_past || has_ended(config, &record.id).await?;
        print_new(&mut log, &wanted)?;
        if ended {
            return Ok(0);
        }
        looks.tick().await;
        log.follow_rotation(&path, &wanted)?;
    }
}

/// Ends with whoever reads it.
fn print_new(log: &mut Log, wanted: &Wanted) -> anyhow::Result<()> {
    let printed = log.print_new(wanted);
    let is_closed = |error: &anyhow::Error| {
        let error = error.downcast_ref::<io::Error>();
        error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    match printed {
        Err(error) if is_closed(&error) => std::process::exit(128 + libc::SIGPIPE),
        printed => printed,
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

/// What is printed of a log, and how.
#[derive(Debug)]
struct Wanted {
    since: Option<OffsetDateTime>,
    until: Option<OffsetDateTime>,
    timestamps: bool,
}

impl Wanted {
    /// A line's time decides; one that can't be read is of no time.
    fn wants(&self, time: &str) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        OffsetDateTime::parse(time, &Rfc3339).is_ok_and(|time| {
            self.since.is_none_or(|since| time >= since)
                && self.until.is_none_or(|until| time < until)
        })
    }
}

/// A log, read as far as its last whole line.
struct Log {
    file: BufReader<File>,
    inode: u64,
    /// Lines of the container that are not printed.
    skip: usize,
    /// Whether the next entry begins a line of the container.
    at_begin: bool,
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
                skip: 0,
                at_begin: true,
                begun: Vec::new(),
            })
        };
        open().with_context(|| format!("reading {}", path.display()))
    }

    fn print_new(&mut self, wanted: &Wanted) -> anyhow::Result<()> {
        let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
        loop {
            let read = self.file.read_until(b'\n', &mut self.begun);
            read.context("reading the log")?;
            if !self.begun.ends_with(b"\n") {
                out.flush()?;
                return Ok(());
            }
            if let Some(entry) = parse_line(&self.begun) {
                let is_wanted = self.skip == 0 && wanted.wants(entry.time);
                if is_wanted {
                    let target: &mut dyn Write = match entry.is_error {
                        true => &mut err,
                        false => &mut out,
                    };
                    if wanted.timestamps && self.at_begin {
                        write!(target, "{} ", entry.time)?;
                    }
                    target.write_all(entry.text)?;
                }
                self.at_begin = entry.is_end;
                self.skip -= usize::from(self.skip > 0 && entry.is_end);
            }
            self.begun.clear();
        }
    }

    /// The logger gives a full log another name and begins a new one: the old one is read to its end first.
    fn follow_rotation(&mut self, path: &Path, wanted: &Wanted) -> anyhow::Result<()> {
        match std::fs::metadata(path) {
            // Between the two, or gone with the container.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
            Ok(now) if now.ino() == self.inode => Ok(()),
            Ok(_) => {
                self.print_new(wanted)?;
                *self = Self::open(path)?;
                Ok(())
            }
        }
    }
}

/// How many lines of the container there are.
fn count_lines(path: &Path) -> anyhow::Result<usize> {
    let count = || -> io::Result<usize> {
        let mut count = 0;
        for line in BufReader::new(File::open(path)?).split(b'\n') {
            count += usize::from(parse_line(&line?).is_some_and(|entry| entry.is_end));
        }
        Ok(count)
    };
    count().with_context(|| format!("reading {}", path.display()))
}

/// One line of the log.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    time: &'a str,
    is_error: bool,
    /// With its newline, where the container's line ends.
    text: &'a [u8],
    is_end: bool,
}

/// CRI log format: `TIME STREAM TAG TEXT\n`; a partial line (tag P) has no newline of its own.
fn parse_line(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let time = str::from_utf8(fields.next()?).ok()?;
    let stream = fields.next()?;
    let is_end = fields.next()? != b"P";
    let text = fields.next()?;
    Some(Entry {
        time,
        is_error: stream == b"stderr",
        text: match is_end {
            false => text.strip_suffix(b"\n").unwrap_or(text),
            true => text,
        },
        is_end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_lines_are_joined_and_streams_told_apart() {
        let parsed = |line: &'static [u8]| {
            let entry = parse_line(line)?;
            Some((entry.is_error, entry.text, entry.is_end))
        };
        assert_eq!(
            parsed(b"t stdout F a b\n"),
            Some((false, &b"a b\n"[..], true))
        );
        assert_eq!(parsed(b"t stderr P a\n"), Some((true, &b"a"[..], false)));
        assert_eq!(parsed(b"t stdout F \n"), Some((false, &b"\n"[..], true)));
        assert_eq!(parsed(b"broken\n"), None);
    }

    #[test]
    fn times_are_written_as_for_docker() {
        let seconds = |text: &str| parse_duration(text).map(time::Duration::whole_seconds);
        assert_eq!(seconds("1h30m"), Ok(5400));
        assert_eq!(seconds("90s"), Ok(90));
        let time = parse_time("2026-01-31T12:00:00Z").unwrap();
        assert_eq!(parse_time(&time.unix_timestamp().to_string()), Ok(time));
        for bad in ["", "h", "10", "yesterday", "5x"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_tail("all"), Ok(None));
        assert_eq!(parse_tail("5"), Ok(Some(5)));
        assert!(parse_tail("x").is_err());
    }

    #[test]
    fn a_line_is_wanted_from_its_time_on_and_until_another() {
        let at = |text: &str| Some(parse_time(text).unwrap());
        let wanted = Wanted {
            since: at("2026-01-31T12:00:00Z"),
            until: at("2026-01-31T13:00:00Z"),
            timestamps: false,
        };
        assert!(wanted.wants("2026-01-31T12:00:00.5Z"));
        assert!(!wanted.wants("2026-01-31T11:59:59.9Z"));
        assert!(!wanted.wants("2026-01-31T13:00:00Z"));
    }
}
