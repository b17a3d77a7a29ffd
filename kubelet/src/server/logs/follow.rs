//! A log in pieces: what is there, and on request what comes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hpk_logs::{Reader, Step};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::filter::{Filter, Pieces};
use super::options::LogOptions;
use crate::server::access::{ContainerQuery, PodAccess, Run};

/// How often a followed file is looked at, unless told otherwise.
const POLL: Duration = Duration::from_millis(100);
/// How often the kubelet is asked whether the container still runs.
const ASK: Duration = Duration::from_secs(1);
/// The logger may still be writing when the container has ended: silence of this length is its end.
const SILENCE: Duration = Duration::from_millis(300);

#[derive(Debug, thiserror::Error)]
#[error("can't read the log {path}")]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Knows whether a run has ended.
#[async_trait]
pub trait Life: Send + Sync + 'static {
    async fn has_ended(&self, run: &Run) -> bool;
}

/// What the kubelet knows of a container.
struct Known {
    access: Arc<dyn PodAccess>,
    query: ContainerQuery,
}

/// Reads a run's log.
pub struct Follower {
    life: Box<dyn Life>,
    run: Run,
    /// `None` while a blocking read has it.
    source: Option<Source>,
    follow: bool,
    poll: Duration,
    asked: Instant,
    ended: bool,
    silent_since: Option<Instant>,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("log", &self.run.log)
            .finish_non_exhaustive()
    }
}

impl Follower {
    pub fn new(
        access: Arc<dyn PodAccess>,
        query: ContainerQuery,
        run: Run,
        options: LogOptions,
    ) -> Self {
        Self::of(Box::new(Known { access, query }), run, options)
    }

    /// Follows a run as long as `life` says.
    pub fn of(life: Box<dyn Life>, run: Run, options: LogOptions) -> Self {
        Self {
            life,
            follow: options.follow,
            poll: POLL,
            source: Some(Source::new(run.log.clone(), &options)),
            asked: Instant::now(),
            ended: !run.running,
            silent_since: None,
            run,
        }
    }

    /// Looks at the file so often.
    pub fn every(self, poll: Duration) -> Self {
        Self { poll, ..self }
    }

    /// Fixes where the log begins for this reader: all that is written from now on is given, though `next` is called later.
    pub async fn begin(&mut self) -> Result<(), Error> {
        self.read(|source| source.reader.begin()).await
    }

    /// Runs `work` where it may block. At the end there is no source any more, and nothing to be done.
    async fn read<T: Default + Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Source) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let Some(mut source) = self.source.take() else {
            return Ok(T::default());
        };
        let done = spawn_blocking(move || {
            let done = work(&mut source);
            (source, done)
        });
        let failed = |source| Error {
            path: self.run.log.clone(),
            source,
        };
        let (source, done) = done.await.map_err(|error| failed(error.into()))?;
        let done = done.map_err(failed)?;
        self.source = Some(source);
        Ok(done)
    }

    /// The next pieces; `None` at the end. While following, waits for more.
    pub async fn next(&mut self) -> Result<Option<Pieces>, Error> {
        while self.source.is_some() {
            let (pieces, at_end) = self.read(Source::step).await?;
            let is_full = self.source.as_ref().is_some_and(|s| s.filter.is_full());
            if is_full {
                self.source = None;
            }
            if !at_end {
                self.silent_since = None;
            }
            if !pieces.is_empty() || is_full {
                return Ok(Some(pieces));
            }
            if at_end && !self.wait().await {
                self.source = None;
            }
        }
        Ok(None)
    }

    /// Waits a little; false when nothing more will come.
    async fn wait(&mut self) -> bool {
        if !self.follow {
            return false;
        }
        if !self.ended && self.asked.elapsed() >= ASK {
            self.asked = Instant::now();
            self.ended = self.life.has_ended(&self.run).await;
        }
        if self.ended {
            let since = *self.silent_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= SILENCE {
                return false;
            }
        }
        sleep(self.poll).await;
        true
    }
}

#[async_trait]
impl Life for Known {
    async fn has_ended(&self, run: &Run) -> bool {
        match self.access.container(&self.query).await {
            Ok(container) => !container
                .current
                .is_some_and(|now| now.id == run.id && now.running),
            Err(crate::server::access::AccessError::NotReady) => false,
            Err(_) => true,
        }
    }
}

/// The blocking side: reads on from where it is.
struct Source {
    reader: Reader,
    filter: Filter,
}

impl Source {
    fn new(log: PathBuf, options: &LogOptions) -> Self {
        Self {
            reader: Reader::new(log, options.tail, options.follow),
            filter: Filter::new(options),
        }
    }

    /// One read. True: there is no more for now.
    fn step(&mut self) -> io::Result<(Pieces, bool)> {
        let filter = &mut self.filter;
        let step = self.reader.step(|line| {
            filter.accept(line);
            !filter.is_full()
        })?;
        if step == Step::Gap {
            tracing::warn!("a log was rotated faster than it was read: lines are missing");
        }
        Ok((self.filter.take(), step == Step::AtEnd))
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
