//! What of the command line and environment is more than a word: environment files, `--bind`, `--net`, `--nv`, HPK_SQUASH_IDS.
//! Pure, but for reading them.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::spec::Volume;

/// `--net`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
pub enum Net {
    /// An address of its own on the bubble's network
    #[default]
    #[value(alias = "bridge", alias = "default")]
    Pod,
    /// A loopback only
    None,
    /// The network of whoever runs it: the host's, or the bubble's
    Host,
}

/// The variables of environment files, in order: `NAME=value`, or `NAME` for the caller's value; empty lines and
/// those that begin with `#` are left out. As with Docker, quotes are part of the value.
pub fn read_env_files(paths: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut entries = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("reading {}", path.display()))?;
        // As editors of other systems begin a file.
        let parsed = parse_env_file(text.trim_start_matches('\u{feff}'));
        entries.extend(parsed.with_context(|| format!("in {}", path.display()))?);
    }
    Ok(entries)
}

fn parse_env_file(text: &str) -> anyhow::Result<Vec<String>> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            bail!("line {}: {name:?} is no name of a variable", number + 1);
        }
        entries.push(line.to_owned());
    }
    Ok(entries)
}

/// Apptainer's `--bind`: `SOURCE[:TARGET[:ro]]`, several with commas between; without a target the same path inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binds(pub Vec<Volume>);

impl std::str::FromStr for Binds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |bind: &str| match bind.contains(':') {
            true => bind.parse(),
            false => format!("{bind}:{bind}").parse(),
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Self)
    }
}

/// With absolute sources, each of which must be there: the runtime's words for it come late, and from deep below.
pub fn absolute<'a>(volumes: impl IntoIterator<Item = &'a Volume>) -> anyhow::Result<Vec<Volume>> {
    let mut found: Vec<Volume> = Vec::new();
    for volume in volumes {
        if found.iter().any(|other| other.target == volume.target) {
            bail!("two volumes for {}", volume.target.display());
        }
        let shown = volume.source.display();
        let looking = || format!("looking at {shown}");
        let source = std::path::absolute(&volume.source).with_context(looking)?;
        if !source.try_exists().with_context(looking)? {
            bail!("there is no {shown} to bind");
        }
        found.push(Volume {
            source,
            ..volume.clone()
        });
    }
    Ok(found)
}

/// `NAME=value` or `NAME`.
pub fn parse_env(text: &str) -> Result<String, String> {
    match text.split('=').next() {
        None | Some("") => Err("the variable has no name".to_owned()),
        Some(_) => Ok(text.to_owned()),
    }
}

/// `--nv` and `--rocm` in the shim's words; none for neither: then it looks at the devices.
pub fn gpu(nv: bool, rocm: bool) -> Option<&'static str> {
    match (nv, rocm) {
        (true, true) => Some("nv,rocm"),
        (true, false) => Some("nv"),
        (false, true) => Some("rocm"),
        (false, false) => None,
    }
}

/// HPK_SQUASH_IDS, as jobs have it: whether a user that there isn't may be root instead.
pub fn squash_ids() -> anyhow::Result<bool> {
    match std::env::var("HPK_SQUASH_IDS").as_deref() {
        Err(_) | Ok("" | "0") => Ok(false),
        Ok("1") => Ok(true),
        Ok(other) => bail!("HPK_SQUASH_IDS={other} is neither 1 nor 0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_file_is_read_as_by_docker() {
        let text = "# comment\nA=1\n\n  B=two words \nC=\"q\"\nD\n";
        let entries = parse_env_file(text).unwrap();
        assert_eq!(entries, ["A=1", "B=two words ", "C=\"q\"", "D"]);
        let fault = parse_env_file("A=1\nB C=1\n").unwrap_err().to_string();
        assert!(fault.contains("line 2") && fault.contains("B C"), "{fault}");
        assert!(parse_env_file("=1\n").is_err());
    }

    #[test]
    fn binds_are_written_as_for_apptainer() {
        let binds = |text: &str| text.parse::<Binds>().map(|b| b.0);
        let all = binds("/a,/b:/c,/d:/e:ro").unwrap();
        let targets: Vec<_> = all
            .iter()
            .map(|v| (v.target.to_str().unwrap(), v.read_only))
            .collect();
        assert_eq!(targets, [("/a", false), ("/c", false), ("/e", true)]);
        for bad in ["", "a", "/a,", "/a:b", "./a"] {
            assert!(binds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        let volumes = ["/tmp:/a".parse().unwrap(), "/no/such:/b".parse().unwrap()];
        let twice = ["/tmp:/a".parse().unwrap(), "/:/a".parse().unwrap()];
        let fault = absolute(&twice).unwrap_err().to_string();
        assert!(fault.contains("/a"), "{fault}");
        let fault = absolute(&volumes).unwrap_err().to_string();
        assert!(fault.contains("/no/such"), "{fault}");
        let here = absolute(&[".:/a".parse().unwrap()]).unwrap();
        assert_eq!(here[0].source, std::env::current_dir().unwrap());
    }
}
