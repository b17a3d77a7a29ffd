//! From the peers to the TAP: receives what there is, joins it, and writes it
//! frame by frame.
//!
//! The socket's buffer, 416 KiB at most sites, holds half a dozen long
//! messages; what comes while they wait is lost, and TCP sends it again. So
//! much is received by one thread and written by another, which may fall
//! behind by [`BUFFERS`]. A few short messages, as of a request, are written
//! at once by the thread that received them: waking another would take longer
//! than all else.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::debug;

use crate::codec::arrival::take;
use crate::codec::join::Joiner;
use crate::counters::{Counters, Reason};
use crate::messages::{Receiver, Writer};
use crate::shared::View;
use crate::slice;

/// The least that Linux gives, ns: the receiving thread has little to do at a
/// time, and must not wait until a sender on the same core has used its own.
const SLICE: u64 = 100_000;
/// Batches received and not written yet.
const BUFFERS: usize = 16;
/// More than this, bytes, is for the other thread to write.
const SHORT: usize = 16 << 10;

/// One direction of one queue.
#[derive(Debug)]
pub struct Receiving {
    pub queue: File,
    pub socket: UdpSocket,
    pub view: View,
    pub counters: Arc<Counters>,
    pub joiner: Joiner,
}

/// What ends it.
#[derive(Debug)]
pub enum End {
    Socket(io::Error),
    Tap(io::Error),
}

/// A batch and how many messages it has.
type Batch = (Box<Receiver>, usize);

/// What judges, joins and writes; one thread at a time.
#[derive(Debug)]
struct Delivery {
    queue: File,
    view: View,
    counters: Arc<Counters>,
    joiner: Joiner,
    writer: Writer,
}

impl Receiving {
    /// Moves frames until the socket or the TAP fails.
    pub fn run(self) -> End {
        if let Err(error) = slice::set(SLICE) {
            debug!(%error, "the receiving thread runs as any other");
        }
        let socket = self.socket;
        let delivery = &Mutex::new(Delivery {
            queue: self.queue,
            view: self.view,
            counters: self.counters,
            joiner: self.joiner,
            writer: Writer::new(),
        });
        // Batches with the other thread. Only this one adds to them.
        let waiting = &AtomicUsize::new(0);
        let (full, to_write) = mpsc::sync_channel::<Batch>(BUFFERS);
        let (empty, to_fill) = mpsc::sync_channel(BUFFERS);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("write".to_owned());
            let writing = thread.spawn_scoped(scope, move || {
                // A new thread has its parent's.
                if let Err(error) = slice::set(slice::DEFAULT) {
                    debug!(%error, "the writing thread keeps short slices");
                }
                for (mut batch, count) in to_write {
                    lock(delivery).deliver(&mut batch, count)?;
                    // There is room for all there are.
                    let _ = empty.try_send(batch);
                    waiting.fetch_sub(1, Ordering::Release);
                }
                Ok(())
            });
            let writing = match writing {
                Ok(writing) => writing,
                Err(error) => return End::Socket(error),
            };
            let mut spare = BUFFERS;
            let buffer = || {
                let used = to_fill.try_recv().ok();
                // Made only when they are needed.
                let made = used.or_else(|| {
                    spare = spare.checked_sub(1)?;
                    Some(Box::new(Receiver::new()))
                });
                made.or_else(|| to_fill.recv().ok())
            };
            let end = receive(&socket, delivery, waiting, full, buffer);
            match writing.join() {
                Ok(Err(end)) => end,
                _ => end,
            }
        })
    }
}

/// Receives until something fails. Dropping `full` ends the other thread.
fn receive(
    socket: &UdpSocket,
    delivery: &Mutex<Delivery>,
    waiting: &AtomicUsize,
    full: SyncSender<Batch>,
    mut buffer: impl FnMut() -> Option<Box<Receiver>>,
) -> End {
    let gone = || End::Tap(io::ErrorKind::BrokenPipe.into());
    let Some(mut batch) = buffer() else {
        return gone();
    };
    loop {
        let count = match batch.receive(socket) {
            Ok(count) => count,
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused => continue,
                _ => return End::Socket(error),
            },
        };
        // Nothing of this thread's may overtake the other's.
        if batch.bytes() <= SHORT && waiting.load(Ordering::Acquire) == 0 {
            if let Err(end) = lock(delivery).deliver(&mut batch, count) {
                return end;
            }
            continue;
        }
        waiting.fetch_add(1, Ordering::Relaxed);
        if full.send((batch, count)).is_err() {
            return gone();
        }
        batch = match buffer() {
            Some(batch) => batch,
            None => return gone(),
        };
    }
}

fn lock(delivery: &Mutex<Delivery>) -> MutexGuard<'_, Delivery> {
    delivery.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Delivery {
    fn deliver(&mut self, batch: &mut Receiver, count: usize) -> Result<(), End> {
        self.counters.calls.add(1);
        for index in 0..count {
            let Some(mut message) = batch.message(index) else {
                self.counters.lost(Reason::TooLong);
                continue;
            };
            loop {
                let taken = take(
                    self.view.table(),
                    &message,
                    &mut batch.memory,
                    &mut self.joiner,
                    |refusal| self.counters.lost(refusal),
                );
                self.counters.frames.add(taken.frames);
                self.counters.bytes.add(taken.bytes);
                let Some(rest) = taken.rest else { break };
                self.write(&mut batch.memory)?;
                message.bytes = rest;
            }
        }
        self.write(&mut batch.memory)
    }

    fn write(&mut self, memory: &mut [u8]) -> Result<(), End> {
        self.joiner.finish(memory);
        for run in self.joiner.runs() {
            let header = run.header().write();
            let pieces = self.joiner.pieces(run);
            match self.writer.write(&self.queue, &header, memory, pieces) {
                Ok(()) => {
                    self.counters.device.add(1);
                    if run.count() > 1 {
                        self.counters.segments.add(run.count() as usize);
                    }
                }
                // The device is gone.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
                    return Err(End::Tap(error));
                }
                Err(error) => {
                    for _ in 0..run.count() {
                        self.counters.lost(Reason::NotWritten);
                    }
                    debug!(%error, "not written");
                }
            }
        }
        self.joiner.clear();
        Ok(())
    }
}
