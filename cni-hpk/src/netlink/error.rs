//! What the kernel refused.

use std::fmt;
use std::io;

/// An operation on the network that failed, with what it was done to.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {operand}")]
pub struct Error {
    pub operation: &'static str,
    pub operand: String,
    #[source]
    pub source: io::Error,
}

impl Error {
    pub fn new(operation: &'static str, operand: impl fmt::Display, source: io::Error) -> Self {
        Self {
            operation,
            operand: operand.to_string(),
            source,
        }
    }

    pub(super) fn of(
        operation: &'static str,
        operand: impl fmt::Display,
    ) -> impl FnOnce(rtnetlink::Error) -> Self {
        let operand = operand.to_string();
        move |error| Self {
            operation,
            operand,
            source: into_io(error),
        }
    }

    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    match &error {
        rtnetlink::Error::NetlinkError(message) => match message.code {
            Some(code) => io::Error::from_raw_os_error(code.get().saturating_neg()),
            None => io::Error::other(error),
        },
        _ => io::Error::other(error),
    }
}

/// Makes "it is there already" or "it is gone already" a success.
pub(super) fn allow(result: Result<(), Error>, errnos: &[i32]) -> Result<(), Error> {
    match result {
        Err(error) if error.errno().is_some_and(|errno| errnos.contains(&errno)) => Ok(()),
        other => other,
    }
}
