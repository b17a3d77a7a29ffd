//! `hpktainer logs`

use std::fs;
use std::io::{self, Write};

use anyhow::{Context as _, bail};

use crate::config::Config;
use crate::container::{self, Places};

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, id, or beginning of an id
    container: String,
}

/// Prints what a detached container has put out so far (the newest 10 MiB), stderr to stderr.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    let record = container::find(config, &args.container)?;
    if !record.logged {
        bail!(
            "container {} ran in the foreground; its output went there",
            record.name
        );
    }
    let path = Places::of(config, &record.id).log();
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        if let Some((is_error, text)) = parse_line(line) {
            let target: &mut dyn Write = if is_error { &mut err } else { &mut out };
            target.write_all(text)?;
        }
    }
    out.flush()?;
    Ok(0)
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
