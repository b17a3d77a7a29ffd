//! `hpktainer logs`

use std::fs::File;
use std::io::{self, BufWriter, Stderr, Stdout, Write};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hpk_logs::{Reader, Step, Stream, parse};
use nix::fcntl::{Flock, FlockArg};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::container::{self, Places};
use crate::locks::lock;
use crate::{sweep, task};

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
type Tail = Option<u64>;

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

/// Prints what is kept of a detached container's output (the newest 40 MiB at least), stderr to stderr; followed, until it
/// ends.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    let record = container::find(config, &args.container)?;
    if !record.logged {
        bail!(
            "container {} ran in the foreground; its output went there",
            record.name
        );
    }
    let places = Places::of(config, &record.id);
    let path = places.log();
    let mut following = match args.follow {
        true => Some(Following::start(config, &places, &record.id)?),
        false => None,
    };
    let mut reader = Reader::new(path.clone(), args.tail, args.follow);
    let mut printer = Printer::new(Wanted {
        since: args.since,
        until: args.until,
        timestamps: args.timestamps,
    });
    let mut looks = tokio::time::interval(LOOK);
    loop {
        // Asked before the reading: what came until the end is still read.
        let is_past = args
            .until
            .is_some_and(|until| OffsetDateTime::now_utc() >= until + LOOK);
        let has_ended = match &mut following {
            Some(following) => following.has_ended(&mut reader)?,
            None => true,
        };
        let ended = is_past || has_ended;
        match print_new(&mut reader, &mut printer) {
            // Just being made, or just removed.
            Err(Failure::Read(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(Failure::Read(error)) => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
            // It ends with whoever reads it.
            Err(Failure::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(128 + libc::SIGPIPE as u8);
            }
            Err(Failure::Print(error)) => return Err(error).context("printing"),
            Ok(()) => {}
        }
        if ended {
            return Ok(0);
        }
        looks.tick().await;
    }
}

/// What ended the printing of a log.
#[derive(Debug)]
enum Failure {
    Read(io::Error),
    Print(io::Error),
}

/// Prints all there is by now.
fn print_new(reader: &mut Reader, printer: &mut Printer) -> Result<(), Failure> {
    loop {
        let mut printed = Ok(());
        let step = reader.step(|line| {
            printed = printer.accept(line);
            printed.is_ok()
        });
        printed
            .and_then(|()| printer.flush())
            .map_err(Failure::Print)?;
        match step.map_err(Failure::Read)? {
            Step::Read => {}
            Step::Gap => eprintln!(
                "hpktainer: the log was rotated faster than it was read: output may be missing here"
            ),
            Step::AtEnd => return Ok(()),
        }
    }
}

/// Asks whether the container has ended, beside the reading: a log that is written fast doesn't wait.
#[derive(Debug)]
struct Following {
    ended: oneshot::Receiver<anyhow::Result<()>>,
    /// As long as it is held, a container that was run with --rm keeps its log for a moment.
    lock: Option<Flock<File>>,
}

impl Following {
    fn start(config: &Config, places: &Places, id: &str) -> anyhow::Result<Self> {
        let lock = lock(&places.followers(), FlockArg::LockShared)?;
        let (tell, ended) = oneshot::channel();
        let (config, id) = (config.clone(), id.to_owned());
        tokio::spawn(async move {
            let mut looks = tokio::time::interval(LOOK);
            let outcome = loop {
                looks.tick().await;
                match has_ended(&config, &id).await {
                    Ok(false) => {}
                    Ok(true) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            // Nobody listens where --until has come first.
            let _ = tell.send(outcome);
        });
        Ok(Self {
            ended,
            lock: Some(lock),
        })
    }

    /// Once it has, `reader` holds all that will ever be read.
    fn has_ended(&mut self, reader: &mut Reader) -> anyhow::Result<bool> {
        match self.ended.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return Ok(false),
            Err(oneshot::error::TryRecvError::Closed) => bail!("looking for the end was given up"),
            Ok(outcome) => outcome?,
        }
        reader.look().context("looking for more of the log")?;
        drop(self.lock.take());
        Ok(true)
    }
}

/// Whether nothing is written any more: the logger may be at it for a moment after the program's end.
async fn has_ended(config: &Config, id: &str) -> anyhow::Result<bool> {
    // One that was run with --rm goes with its record.
    let Some(record) = container::list(config)?.into_iter().find(|r| r.id == id) else {
        return Ok(true);
    };
    let status = task::status(config, &record).await?;
    let runs = matches!(status, task::Status::Created | task::Status::Running);
    Ok(record.cleaned_up || !runs && !sweep::is_owned(config, id)?)
}

/// What is printed of a log, and how.
#[derive(Debug)]
struct Wanted {
    since: Option<OffsetDateTime>,
    until: Option<OffsetDateTime>,
    timestamps: bool,
}

impl Wanted {
    /// A line's time decides.
    fn wants(&self, time: OffsetDateTime) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }
}

/// Entries of the log to the two streams.
struct Printer {
    wanted: Wanted,
    out: BufWriter<Stdout>,
    err: BufWriter<Stderr>,
    /// The stream of the last entry: what was put out before the other's goes there first.
    last: Stream,
    /// Streams within a line: no time is put before its further entries.
    within: [bool; 2],
}

impl Printer {
    fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            out: BufWriter::new(io::stdout()),
            err: BufWriter::new(io::stderr()),
            last: Stream::Stdout,
            within: [false; 2],
        }
    }

    /// Prints an entry; what is none is dropped.
    fn accept(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(entry) = parse(line) else {
            return Ok(());
        };
        let begins = !std::mem::replace(&mut self.within[entry.stream as usize], entry.partial);
        if !self.wanted.wants(entry.time) {
            return Ok(());
        }
        if entry.stream != self.last {
            self.flush()?;
            self.last = entry.stream;
        }
        let target: &mut dyn Write = match entry.stream {
            Stream::Stdout => &mut self.out,
            Stream::Stderr => &mut self.err,
        };
        if self.wanted.timestamps && begins {
            let time = line.split(|byte| *byte == b' ').next();
            target.write_all(time.unwrap_or_default())?;
            target.write_all(b" ")?;
        }
        target.write_all(entry.text)?;
        match entry.partial {
            true => Ok(()),
            false => target.write_all(b"\n"),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.err.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let wants = |text: &str| wanted.wants(parse_time(text).unwrap());
        assert!(wants("2026-01-31T12:00:00.5Z"));
        assert!(!wants("2026-01-31T11:59:59.9Z"));
        assert!(!wants("2026-01-31T13:00:00Z"));
    }
}
