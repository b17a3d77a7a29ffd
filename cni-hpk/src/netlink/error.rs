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
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::new(operation, operand, source)
    }

    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}
