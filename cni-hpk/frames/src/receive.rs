//! From the peers to the TAP: receives what there is, joins it, and writes it
//! frame by frame.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;

use tracing::debug;

use crate::codec::arrival::take;
use crate::codec::join::Joiner;
use crate::counters::{Counters, Reason};
use crate::messages::{Receiver, Writer};
use crate::shared::View;

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

impl Receiving {
    /// Moves frames until the socket or the TAP fails.
    pub fn run(mut self) -> End {
        let mut receiver = Receiver::new();
        let mut writer = Writer::new();
        loop {
            let count = match receiver.receive(&self.socket) {
                Ok(count) => count,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused => continue,
                    _ => return End::Socket(error),
                },
            };
            self.counters.calls.add(1);
            for index in 0..count {
                let Some(mut message) = receiver.message(index) else {
                    self.counters.lost(Reason::TooLong);
                    continue;
                };
                loop {
                    let taken = take(
                        self.view.table(),
                        &message,
                        &mut receiver.memory,
                        &mut self.joiner,
                        |refusal| self.counters.lost(refusal),
                    );
                    self.counters.frames.add(taken.frames);
                    self.counters.bytes.add(taken.bytes);
                    let Some(rest) = taken.rest else { break };
                    if let Err(end) = self.write(&mut writer, &mut receiver.memory) {
                        return end;
                    }
                    message.bytes = rest;
                }
            }
            if let Err(end) = self.write(&mut writer, &mut receiver.memory) {
                return end;
            }
        }
    }

    fn write(&mut self, writer: &mut Writer, memory: &mut [u8]) -> Result<(), End> {
        self.joiner.finish(memory);
        for run in self.joiner.runs() {
            let header = run.header().write();
            match writer.write(&self.queue, &header, memory, self.joiner.pieces(run)) {
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
