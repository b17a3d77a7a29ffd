//! What the work under a lease shows of itself: that it gets on.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Handed to whatever does the work, on any thread; clones are one pulse.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Something was done: bytes came, were read, or are safely on a disk.
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Time since the last beat.
    pub(super) fn silence(&self) -> Duration {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }

    /// `reader`, each read of which is a beat.
    pub fn of<R: Read>(&self, reader: R) -> impl Read {
        Beating {
            reader,
            pulse: self.clone(),
        }
    }
}

struct Beating<R> {
    reader: R,
    pulse: Pulse,
}

impl<R: Read> Read for Beating<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buf)?;
        self.pulse.beat();
        Ok(n)
    }
}
