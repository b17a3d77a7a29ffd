//! An attachment whose ends are joined: by the engine, or, over a socket, by
//! a thread each way.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use tracing::warn;

use super::engine::{Engine, Pair, Registered};
use super::pump::{End, socket_to_tap, tap_to_socket};
use super::socket::Connection;
use super::stats::Both;
use super::wire::{Attachment, Form};

/// Called once an end has failed.
pub type Ended = Arc<dyn Fn() + Send + Sync>;

/// Its frames move until it is stopped or dropped, or an end fails.
#[derive(Debug)]
pub struct Joined {
    pub form: Form,
    pub counters: Arc<Both>,
    stop: Stop,
    reader: PipeReader,
    threads: Vec<JoinHandle<()>>,
    registered: Option<Registered>,
    /// Tells the pod's side, by its end, that we are gone.
    _held: Option<Connection>,
}

/// Closing the pipe stops both threads; whoever does it first.
#[derive(Clone, Debug)]
struct Stop(Arc<Mutex<Option<PipeWriter>>>);

impl Stop {
    fn now(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn is_asked(&self) -> bool {
        let writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.is_none()
    }
}

impl Joined {
    /// Of two TAPs: one process moves the frames. `held` lives as long.
    pub fn taps(
        engine: &Engine,
        attachment: &Attachment,
        bridge: File,
        pod: File,
        held: Option<Connection>,
        counters: Arc<Both>,
        ended: &Ended,
    ) -> io::Result<Self> {
        let mut joined = Self::new(Form::Descriptor, counters, held)?;
        let (stop, ended, attachment) = (joined.stop.clone(), ended.clone(), attachment.clone());
        joined.registered = Some(engine.add(Pair {
            bridge,
            pod,
            counters: joined.counters.clone(),
            ended: Arc::new(move || {
                stop.now();
                warn!(%attachment, "a TAP is gone: frames no longer move");
                ended();
            }),
        })?);
        Ok(joined)
    }

    /// Of a TAP and the other side's connection. On the bridge's side, what
    /// comes over the connection is from the pod; on the pod's side, to it.
    pub fn over(
        attachment: &Attachment,
        tap: File,
        connection: Connection,
        side: Side,
        counters: Arc<Both>,
        ended: &Ended,
    ) -> io::Result<Self> {
        let mut joined = Self::new(Form::Frames, counters, None)?;
        let (tap, connection) = (Arc::new(tap), Arc::new(connection));
        let (device, socket) = (tap.clone(), connection.clone());
        joined.spawn("receive", attachment, ended, move |stop, counters| {
            socket_to_tap(&*socket, &device, stop, side.received(counters))
        })?;
        joined.spawn("send", attachment, ended, move |stop, counters| {
            tap_to_socket(&tap, &*connection, stop, side.sent(counters))
        })?;
        Ok(joined)
    }

    fn new(form: Form, counters: Arc<Both>, held: Option<Connection>) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self {
            form,
            counters,
            stop: Stop(Arc::new(Mutex::new(Some(writer)))),
            reader,
            threads: Vec::new(),
            registered: None,
            _held: held,
        })
    }

    fn spawn(
        &mut self,
        name: &str,
        attachment: &Attachment,
        ended: &Ended,
        pump: impl FnOnce(&PipeReader, &Both) -> End + Send + 'static,
    ) -> io::Result<()> {
        let (stop, reader) = (self.stop.clone(), self.reader.try_clone()?);
        let (counters, ended) = (self.counters.clone(), ended.clone());
        let attachment = attachment.clone();
        let body = move || {
            if let End::Failed(error) = pump(&reader, &counters) {
                // The other way ends with it, and only the first failure counts.
                if !stop.is_asked() {
                    stop.now();
                    warn!(%attachment, %error, "frames no longer move");
                    ended();
                }
            }
        };
        let thread = Builder::new().name(name.to_owned()).spawn(body)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Whether frames still move.
    pub fn is_alive(&self) -> bool {
        !self.stop.is_asked()
    }

    /// Readable when it is stopped.
    pub fn stopped(&self) -> io::Result<PipeReader> {
        self.reader.try_clone()
    }
}

impl Drop for Joined {
    /// Both ends are closed when it returns.
    fn drop(&mut self) {
        self.stop.now();
        drop(self.registered.take());
        for thread in self.threads.drain(..) {
            // One that panicked has ended too.
            let _ = thread.join();
        }
    }
}

/// On which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Bridge,
    Pod,
}

impl Side {
    fn received(self, counters: &Both) -> &super::stats::Counters {
        match self {
            Self::Bridge => &counters.from_pod,
            Self::Pod => &counters.to_pod,
        }
    }

    fn sent(self, counters: &Both) -> &super::stats::Counters {
        match self {
            Self::Bridge => &counters.to_pod,
            Self::Pod => &counters.from_pod,
        }
    }
}
