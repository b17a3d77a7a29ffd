//! `hpktainer ps`

use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::container::Record;
use crate::format::{Format, print, table};
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
    /// Only those of which it is so; of several of one KEY one will do
    #[arg(short, long, value_name = "name|id|ancestor|status=VALUE")]
    filter: Vec<Filter>,
    /// Only the newest, whatever they do
    #[arg(short = 'n', long, value_name = "NUMBER")]
    last: Option<usize>,
    /// Only the newest
    #[arg(short, long, conflicts_with = "last")]
    latest: bool,
    /// Ids are never cut short: this says nothing
    #[arg(long)]
    no_trunc: bool,
    /// json: an object for each container on a line of its own; or a template, e.g. {{.Names}}
    #[arg(long, conflicts_with = "quiet")]
    format: Option<Format>,
}

/// `KEY=VALUE` of `--filter`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Filter {
    key: Key,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Name,
    Id,
    Ancestor,
    Status,
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
        let key = match key {
            "name" => Key::Name,
            "id" => Key::Id,
            "ancestor" => Key::Ancestor,
            "status" => Key::Status,
            other => return Err(format!("{other:?} is none of name, id, ancestor, status")),
        };
        let states = ["created", "running", "exited", "dead"];
        if key == Key::Status && !states.contains(&value) {
            return Err(format!("{value:?} is none of {}", states.join(", ")));
        }
        Ok(Self {
            key,
            value: value.to_owned(),
        })
    }
}

/// As Docker's regular expressions, of which only the ends are known: `^web$` is that name alone.
fn is_named(name: &str, pattern: &str) -> bool {
    match (pattern.strip_prefix('^'), pattern.strip_suffix('$')) {
        (Some(_), Some(_)) => name == &pattern[1..pattern.len() - 1],
        (Some(start), None) => name.starts_with(start),
        (None, Some(end)) => name.ends_with(end),
        (None, None) => name.contains(pattern),
    }
}

/// An image's name without tag and digest; a registry's port is neither.
fn repository(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

impl Filter {
    fn lets_through(&self, record: &Record, status: task::Status) -> bool {
        let value = &self.value;
        match self.key {
            Key::Name => is_named(&record.name, value),
            Key::Id => record.id.starts_with(value),
            Key::Ancestor => {
                let image = record.image.trim_start_matches("docker://");
                image == value || repository(image) == value
            }
            Key::Status => inspect::word(status) == value,
        }
    }
}

/// Those of one key are alternatives, as with Docker.
fn pass(filters: &[Filter], record: &Record, status: task::Status) -> bool {
    let of = |key: Key| filters.iter().filter(move |filter| filter.key == key);
    [Key::Name, Key::Id, Key::Ancestor, Key::Status]
        .iter()
        .all(|key| {
            of(*key).next().is_none() || of(*key).any(|filter| filter.lets_through(record, status))
        })
}

/// One line per container, the newest first.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let most = args.last.or(args.latest.then_some(1));
    let by_status = args.filter.iter().any(|filter| filter.key == Key::Status);
    let all = args.all || most.is_some() || by_status;
    let heading = [
        "ID", "NAME", "IMAGE", "STATUS", "AGE", "IP", "PORTS", "COMMAND",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let mut shown = 0;
    for record in container::list(config)? {
        let status = task::status(config, &record).await?;
        let runs = matches!(status, task::Status::Running | task::Status::Created);
        if !(all || runs) || !pass(&args.filter, &record, status) {
            continue;
        }
        if most.is_some_and(|most| shown >= most) {
            break;
        }
        shown += 1;
        match &args.format {
            _ if args.quiet => print(&record.id)?,
            Some(format) => print(format.line(&describe(&record, status, now))?)?,
            None => rows.push(row(&record, status, now)),
        }
    }
    if !args.quiet && args.format.is_none() {
        table(&rows).iter().try_for_each(print)?;
    }
    Ok(0)
}

fn row(record: &Record, status: task::Status, now: u64) -> Vec<String> {
    let dash = |text: String| match text.is_empty() {
        true => "-".to_owned(),
        false => text,
    };
    vec![
        record.id.clone(),
        record.name.clone(),
        record.image.clone(),
        status.to_string(),
        age(now.saturating_sub(record.created)),
        dash(record.ip.clone().unwrap_or_default()),
        dash(ports(record)),
        record.command.join(" "),
    ]
}

fn ports(record: &Record) -> String {
    let ports: Vec<String> = record.ports.iter().map(ToString::to_string).collect();
    ports.join(", ")
}

/// Keys as Docker has them.
fn describe(record: &Record, status: task::Status, now: u64) -> serde_json::Value {
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
        "Ports": ports(record),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_one_key_are_alternatives_and_of_several_all_must_hold() {
        let mut record = container::tests::record("aa11", "web");
        record.image = "docker://busybox:1.37".to_owned();
        let passes = |filters: &[&str]| {
            let filters: Vec<Filter> = filters.iter().map(|it| it.parse().unwrap()).collect();
            pass(&filters, &record, task::Status::Exited(1))
        };
        assert!(passes(&[]));
        assert!(passes(&["name=we", "name=db", "id=aa"]));
        assert!(!passes(&["name=we", "id=bb"]));
        assert!(passes(&["ancestor=busybox", "status=exited"]));
        assert!(!passes(&["ancestor=busy"]));
        assert!(passes(&["status=running", "status=exited"]));
    }

    #[test]
    fn a_filter_that_is_not_known_is_refused() {
        for (bad, word) in [("name", "KEY"), ("label=x", "label"), ("status=up", "up")] {
            let fault = bad.parse::<Filter>().unwrap_err();
            assert!(fault.contains(word), "{fault}");
        }
    }
}
