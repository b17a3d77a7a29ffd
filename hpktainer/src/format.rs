//! How lists and objects are printed: `--format json`, the simple ones of Docker's templates, and tables.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use serde_json::Value;

/// `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// An object on a line of its own.
    Json,
    /// Text with fields in it: `{{.Names}}: {{.State}}`.
    Template(Vec<Part>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(String),
    /// A path of keys; whether as JSON.
    Field {
        keys: Vec<String>,
        json: bool,
    },
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "json" {
            return Ok(Self::Json);
        }
        if text.starts_with("table ") {
            return Err("tables of chosen columns are not known: leave out \"table \"".to_owned());
        }
        if !text.contains("{{") {
            return Err("expected json, or a template such as {{.Names}}".to_owned());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, field)) = rest.split_once("{{") {
            let (field, after) = field
                .split_once("}}")
                .ok_or("a {{ has no }} behind it".to_owned())?;
            // As in a shell's single quotes, where Docker takes them for a tab and a line's end.
            parts.push(Part::Text(before.replace("\\t", "\t").replace("\\n", "\n")));
            parts.push(parse_field(field.trim())?);
            rest = after;
        }
        parts.push(Part::Text(rest.replace("\\t", "\t").replace("\\n", "\n")));
        Ok(Self::Template(parts))
    }
}

fn parse_field(field: &str) -> Result<Part, String> {
    let (json, path) = match field.strip_prefix("json ") {
        Some(path) => (true, path.trim()),
        None => (false, field),
    };
    let keys = path
        .strip_prefix('.')
        .filter(|keys| !keys.contains(|c: char| c.is_whitespace() || "()|\"".contains(c)))
        .ok_or_else(|| {
            format!("{{{{{field}}}}} is no field: of Docker's templates {{{{.KEY}}}}, {{{{.KEY.KEY}}}} and {{{{json .KEY}}}} are known; for more, --format json and jq")
        })?;
    let keys = keys.split('.').filter(|key| !key.is_empty());
    Ok(Part::Field {
        keys: keys.map(str::to_owned).collect(),
        json,
    })
}

impl Format {
    /// The line that it makes of an object.
    pub fn line(&self, object: &Value) -> anyhow::Result<String> {
        let Self::Template(parts) = self else {
            return Ok(object.to_string());
        };
        let mut line = String::new();
        for part in parts {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Field { keys, json } => {
                    let value = field(object, keys)?;
                    match (json, value) {
                        (false, Value::String(text)) => line.push_str(text),
                        (false, Value::Null) => {}
                        _ => line.push_str(&value.to_string()),
                    }
                }
            }
        }
        Ok(line)
    }
}

fn field<'a>(object: &'a Value, keys: &[String]) -> anyhow::Result<&'a Value> {
    let mut value = object;
    for key in keys {
        let Some(inner) = value.get(key) else {
            let there = value
                .as_object()
                .map(|map| map.keys().cloned().collect::<Vec<_>>());
            let there = there.filter(|keys| !keys.is_empty());
            let there = there
                .context("it has no keys")
                .with_context(|| format!("no key {key:?}"))?;
            bail!("no key {key:?}; there are {}", there.join(", "));
        };
        value = inner;
    }
    Ok(value)
}

/// Prints a line. Whoever reads may have enough, as `head` has: then this program ends as any other would.
pub fn print(line: impl Display) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            std::process::exit(128 + libc::SIGPIPE)
        }
        printed => printed.context("printing"),
    }
}

/// Rows as lines, the first of them the heading; each column as wide as its widest cell.
pub fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells = cells.map(|(cell, width)| format!("{cell:<width$}   "));
        cells.collect::<String>().trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_filled_in_as_by_docker() {
        let object = json!({"Names": "web", "State": {"Running": true, "ExitCode": null}});
        let line = |text: &str| text.parse::<Format>().unwrap().line(&object).unwrap();
        assert_eq!(line("{{.Names}}: {{ .State.Running }}!"), "web: true!");
        assert_eq!(line("{{.State.ExitCode}}"), "");
        assert_eq!(line("{{json .Names}}\\t"), "\"web\"\t");
        assert_eq!(line("{{json .}}"), object.to_string());
        assert_eq!(line("json"), object.to_string());
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (text, word) in [
            ("{{range .X}}", "range .X"),
            ("{{.A", "}}"),
            ("table", "json"),
        ] {
            let fault = text.parse::<Format>().unwrap_err();
            assert!(fault.contains(word), "{fault}");
        }
        let format: Format = "{{.Nmaes}}".parse().unwrap();
        let fault = format.line(&json!({"Names": 1})).unwrap_err().to_string();
        assert!(
            fault.contains("Nmaes") && fault.contains("Names"),
            "{fault}"
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "B"], ["long", "b"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), ["A      B", "long   b"]);
    }
}
