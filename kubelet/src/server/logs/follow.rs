//! A log in pieces: what is there, and on request what comes.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::files::{self, LogFile};
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
    reader: Option<Reader>,
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
            reader: Some(Reader::new(run.log.clone(), options)),
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
        self.read(|reader| match reader.started {
            true => Ok(()),
            false => reader.start(),
        })
        .await
    }

    /// Runs `work` where it may block. At the end there is no reader any more, and nothing to be done.
    async fn read<T: Default + Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Reader) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let Some(mut reader) = self.reader.take() else {
            return Ok(T::default());
        };
        let done = spawn_blocking(move || {
            let done = work(&mut reader);
            (reader, done)
        });
        let failed = |source| Error {
            path: self.run.log.clone(),
            source,
        };
        let (reader, done) = done.await.map_err(|error| failed(error.into()))?;
        let done = done.map_err(failed)?;
        self.reader = Some(reader);
        Ok(done)
    }

    /// The next pieces; `None` at the end. While following, waits for more.
    pub async fn next(&mut self) -> Result<Option<Pieces>, Error> {
        while self.reader.is_some() {
            let (pieces, at_end) = self.read(Reader::step).await?;
            let is_full = self.reader.as_ref().is_some_and(|r| r.filter.is_full());
            if is_full {
                self.reader = None;
            }
            if !at_end {
                self.silent_since = None;
            }
            if !pieces.is_empty() || is_full {
                return Ok(Some(pieces));
            }
            if at_end && !self.wait().await {
                self.reader = None;
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

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// The blocking side: reads on from where it is.
struct Reader {
    log: PathBuf,
    filter: Filter,
    tail: Option<u64>,
    follow: bool,
    started: bool,
    /// Being read, and those known to come after it.
    current: Option<LogFile>,
    later: std::collections::VecDeque<LogFile>,
    position: u64,
    /// The beginning of a line whose end isn't there yet.
    carry: Vec<u8>,
}

impl Reader {
    fn new(log: PathBuf, options: LogOptions) -> Self {
        Self {
            log,
            filter: Filter::new(&options),
            tail: options.tail,
            follow: options.follow,
            started: false,
            current: None,
            later: std::collections::VecDeque::new(),
            position: 0,
            carry: Vec::new(),
        }
    }

    /// One read. True: there is no more for now.
    fn step(&mut self) -> io::Result<(Pieces, bool)> {
        if !self.started {
            self.start()?;
        }
        let mut buffer = vec![0; CHUNK];
        let mut count = self.read(&mut buffer)?;
        if count == 0 {
            match self.successor()? {
                Some(next) => {
                    // Complete since before the successor came; what came before that is read now.
                    count = self.read(&mut buffer)?;
                    if count == 0 {
                        self.end_file();
                        self.current = Some(next);
                        self.position = 0;
                        return Ok((self.filter.take(), false));
                    }
                    self.later.push_front(next);
                }
                None => {
                    if !self.follow {
                        self.end_file();
                    }
                    return Ok((self.filter.take(), true));
                }
            }
        }
        self.accept(&buffer[..count]);
        Ok((self.filter.take(), false))
    }

    /// Finds the first file and where in it to begin.
    fn start(&mut self) -> io::Result<()> {
        let files = files::open_all(&self.log)?;
        if files.is_empty() {
            // Not yet written, or gone with its pod.
            if self.follow {
                // Whatever comes is new.
                self.tail = None;
                return Ok(());
            }
            return Err(io::ErrorKind::NotFound.into());
        }
        self.started = true;
        let mut first = 0;
        if let Some(mut lines) = self.tail {
            for (at, file) in files.iter().enumerate().rev() {
                let (begin, found) = files::find_tail(&file.file, lines)?;
                (first, self.position) = (at, begin);
                lines -= found;
                if lines == 0 {
                    break;
                }
            }
        }
        self.later = files.into_iter().skip(first).collect();
        self.current = self.later.pop_front();
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(current) = &self.current else {
            return Ok(0);
        };
        let count = current.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }

    fn successor(&mut self) -> io::Result<Option<LogFile>> {
        if let Some(next) = self.later.pop_front() {
            return Ok(Some(next));
        }
        let Some(current) = &self.current else {
            return Ok(None);
        };
        match files::successor(&self.log, current.inode) {
            // The whole folder is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other,
        }
    }

    fn accept(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(newline) = rest.iter().position(|byte| *byte == b'\n') {
            if self.carry.is_empty() {
                self.filter.accept(&rest[..newline]);
            } else {
                self.carry.extend_from_slice(&rest[..newline]);
                self.filter.accept(&self.carry);
                self.carry.clear();
            }
            rest = &rest[newline + 1..];
            if self.filter.is_full() {
                return;
            }
        }
        self.carry.extend_from_slice(rest);
    }

    /// No more comes in this file: a line without its end is all there is of it.
    fn end_file(&mut self) {
        if !self.carry.is_empty() {
            let line = std::mem::take(&mut self.carry);
            self.filter.accept(&line);
        }
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
