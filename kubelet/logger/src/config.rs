//! The arguments: pairs of key and value, in any order.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// Where to log, and how much to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub path: PathBuf,
    /// Bytes after which the file is rotated; 0: never.
    pub max_size: u64,
    /// Files kept, the current one included; at least 1.
    pub max_files: usize,
    /// Milliseconds of silence after which a line's beginning is written as partial, for a terminal's
    /// prompt; 0: never, it waits for its end.
    pub partial_after: u16,
}

/// Arguments that can't be honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    NoPath,
    NoValue(String),
    NotANumber { key: String, value: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPath => f.write_str("no log file given (path=/…)"),
            Self::NoValue(key) => write!(f, "{key} has no value"),
            Self::NotANumber { key, value } => write!(f, "{key} wants a number, not {value:?}"),
        }
    }
}

impl Config {
    /// # Errors
    /// No path, a key without a value, a value that isn't a number.
    pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Self, Error> {
        let mut config = Self {
            path: PathBuf::new(),
            max_size: 10 << 20,
            max_files: 5,
            partial_after: 0,
        };
        let mut args = args;
        while let Some(key) = args.next() {
            let key = key.to_string_lossy().into_owned();
            let value = args.next().ok_or_else(|| Error::NoValue(key.clone()))?;
            match key.as_str() {
                "path" => config.path = PathBuf::from(value),
                "max-size" => config.max_size = number(&key, &value)?,
                "max-files" => {
                    let files = number(&key, &value)?;
                    config.max_files = usize::try_from(files).unwrap_or(usize::MAX).max(1);
                }
                "partial-after" => {
                    let millis = number(&key, &value)?;
                    config.partial_after = u16::try_from(millis).unwrap_or(u16::MAX);
                }
                // A container without its log dies of the first line: a newer caller's wish doesn't
                // weigh as much.
                _ => eprintln!("hpk-logger: {key} is not known here"),
            }
        }
        if config.path.file_name().is_none() {
            return Err(Error::NoPath);
        }
        Ok(config)
    }
}

fn number(key: &str, value: &OsString) -> Result<u64, Error> {
    let text = value.to_string_lossy();
    text.parse().map_err(|_| Error::NotANumber {
        key: key.to_owned(),
        value: text.into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, Error> {
        Config::parse(args.iter().map(OsString::from))
    }

    #[test]
    fn pairs_come_in_any_order() {
        let config = parse(&["max-files", "3", "path", "/l/0.log", "max-size", "4096"]).unwrap();
        assert_eq!(config.path, PathBuf::from("/l/0.log"));
        assert_eq!((config.max_size, config.max_files), (4096, 3));
    }

    #[test]
    fn a_path_alone_has_the_kubelets_usual_limits() {
        let config = parse(&["path", "/l/0.log"]).unwrap();
        assert_eq!((config.max_size, config.max_files), (10 << 20, 5));
    }

    #[test]
    fn an_unknown_key_is_passed_over() {
        let config = parse(&["colour", "red", "path", "/l/0.log"]).unwrap();
        assert_eq!(config.path, PathBuf::from("/l/0.log"));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert_eq!(parse(&[]), Err(Error::NoPath));
        assert_eq!(parse(&["path"]), Err(Error::NoValue("path".into())));
        let refused = parse(&["path", "/l", "max-size", "10Mi"]);
        assert!(matches!(refused, Err(Error::NotANumber { .. })));
    }
}
