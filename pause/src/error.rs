//! A step on the way to the user's program that failed.

use std::{fmt, io};

/// What was attempted and why it failed; its text ends up in the Task API's answer.
#[derive(Debug)]
pub struct Error {
    step: String,
    source: Option<io::Error>,
}

impl Error {
    /// A failure with no system error behind it.
    pub fn plain(step: impl Into<String>) -> Self {
        Self {
            step: step.into(),
            source: None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.step),
            None => f.write_str(&self.step),
        }
    }
}

/// Names the step of a system error.
pub trait Context<T> {
    fn context(self, step: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, step: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|e| Error {
            step: step(),
            source: Some(e.into()),
        })
    }
}
