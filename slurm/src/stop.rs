//! The signals that ask a job to end.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::allocation::Job;
use crate::clock::now;

/// Caught from its making on.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub fn catch() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("catching SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("catching SIGINT")?,
        })
    }

    /// Waits for one, and says why it came.
    pub async fn asked(&mut self, job: &Job) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => match job.ends {
                Some(ends) if ends - now() < 90 => "the job's time is nearly over",
                _ => "the job was cancelled (SIGTERM)",
            },
            _ = self.interrupt.recv() => "interrupted (SIGINT)",
        }
    }
}
