//! The resident daemon: in the bubble, or beside the bridge of any machine.
//!
//! Everything it must know lies on disk as the plugin's attachment records, so
//! that a killed daemon's successor joins again what was joined.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hpk_frames::tap;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, info, warn};

use super::config::ServeConfig;
use super::engine::Engine;
use super::error::Error;
use super::joined::{Ended, Joined, Side};
use super::socket::{self, Connection};
use super::stats::{Both, Shown, render};
use super::wire::{Answer, Attachment, Form, MESSAGE, Request, decode_request, encode};
use super::{folder_of, launch, proxy};
use crate::netlink::in_namespace;
use crate::plugin::attachments::{Attachments, Record};
use crate::plugin::error::chain;

/// How long the pod's side of an attachment may be away before a local one is
/// started anew, or a far one, which can't be, is given up.
const AWAY_LOCAL: Duration = Duration::from_secs(2);
const AWAY_FAR: Duration = Duration::from_secs(30);

/// Serves until the process is killed, or has nothing to do and was told not
/// to wait.
pub fn serve(config: ServeConfig) -> Result<(), Error> {
    let folder = folder_of(&config.data_dir);
    let Some(_lock) = take_place(&folder, config.until_idle)? else {
        info!("another daemon serves already");
        return Ok(());
    };
    let listener = socket::listen_in(&folder).map_err(|source| Error::File {
        operation: "listen in",
        path: folder.clone(),
        source,
    })?;
    let (sender, events) = channel();
    let resident = Arc::new(Resident {
        attachments: Attachments::new(&config.data_dir),
        folder,
        config,
        engine: Engine::start().map_err(Error::Start)?,
        joined: Mutex::default(),
        events: sender,
    });
    resident.restore()?;
    let accepting = resident.clone();
    spawn("accept", move || accepting.accept(&listener))?;
    resident.attend(&events);
    Ok(())
}

/// One daemon per folder: the lock tells. One that was started by an ADD goes
/// when it finds another; one that is supervised waits for its turn.
fn take_place(folder: &Path, until_idle: bool) -> Result<Option<File>, Error> {
    let path = folder.join(socket::LOCK);
    let open = || {
        socket::make_folder(folder)?;
        let file = File::options().create(true).append(true).open(&path)?;
        if !until_idle {
            file.lock()?;
            return Ok(Some(file));
        }
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    };
    open().map_err(|source| Error::File {
        operation: "lock",
        path: path.clone(),
        source,
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(body).map(drop).map_err(Error::Start)
}

/// What has happened to an attachment.
#[derive(Debug)]
enum Event {
    /// Its frames no longer move.
    Ended(Attachment),
    /// Nobody is left who could ask for its DEL.
    Orphaned(Attachment),
    Left,
}

#[derive(Debug)]
pub struct Resident {
    config: ServeConfig,
    folder: PathBuf,
    attachments: Attachments,
    engine: Engine,
    joined: Mutex<HashMap<Attachment, Joined>>,
    events: Sender<Event>,
}

impl Resident {
    fn joined(&self) -> MutexGuard<'_, HashMap<Attachment, Joined>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of the data folder that have a TAP.
    fn records(&self) -> Result<Vec<Record>, Error> {
        let mut records = self.attachments.load_every()?;
        records.retain(|record| record.tap.is_some());
        Ok(records)
    }

    fn record(&self, attachment: &Attachment) -> Result<Option<Record>, Error> {
        let Attachment {
            network,
            container_id,
            ifname,
        } = attachment;
        let record = self.attachments.load(network, container_id, ifname)?;
        Ok(record.filter(|record| record.tap.is_some()))
    }

    /// Joins again what a predecessor had joined. The others' pod sides come
    /// by themselves.
    fn restore(&self) -> Result<(), Error> {
        for record in self.records()? {
            let attachment = record.attachment();
            // One that is being added has its TAP in the plugin's hands. What can't be joined
            // yet is looked at again in a while.
            if let Err(error) = self.rejoin(&record) {
                debug!(%attachment, error = full(&error), "not joined yet");
            }
            let _ = self.events.send(Event::Ended(attachment));
        }
        Ok(())
    }

    /// Opens both ends itself, where it can: of a pod in its own user namespace
    /// whose frames don't come over the socket.
    fn rejoin(&self, record: &Record) -> Result<(), Error> {
        let (Some(tap), Some(netns)) = (&record.tap, &record.netns) else {
            return Ok(());
        };
        if tap.caller.is_some() || tap.form == Form::Frames {
            return Ok(());
        }
        let pod = open_pod_tap(netns, &record.ifname)?;
        self.join_taps(record, pod, None)
    }

    fn join_taps(&self, record: &Record, pod: File, held: Option<Connection>) -> Result<(), Error> {
        let attachment = record.attachment();
        self.replace(&attachment, |counters, ended| {
            let bridge = open_bridge_tap(record)?;
            Joined::taps(
                &self.engine,
                &attachment,
                bridge,
                pod,
                held,
                counters,
                ended,
            )
            .map_err(Error::Start)
        })
    }

    fn join_over(&self, record: &Record, connection: Connection) -> Result<(), Error> {
        let attachment = record.attachment();
        self.replace(&attachment, |counters, ended| {
            let bridge = open_bridge_tap(record)?;
            Joined::over(
                &attachment,
                bridge,
                connection,
                Side::Bridge,
                counters,
                ended,
            )
            .map_err(Error::Start)
        })
    }

    /// What was joined before lets go of the device first.
    fn replace(
        &self,
        attachment: &Attachment,
        join: impl FnOnce(Arc<Both>, &Ended) -> Result<Joined, Error>,
    ) -> Result<(), Error> {
        let mut all = self.joined();
        let counters = all.remove(attachment).map(|before| before.counters.clone());
        let (events, name) = (self.events.clone(), attachment.clone());
        let ended: Ended = Arc::new(move || {
            // A daemon that no longer listens is ending.
            let _ = events.send(Event::Ended(name.clone()));
        });
        let joined = join(counters.unwrap_or_default(), &ended)?;
        info!(%attachment, form = ?joined.form, "joined");
        all.insert(attachment.clone(), joined);
        Ok(())
    }

    fn accept(self: &Arc<Self>, listener: &OwnedFd) {
        loop {
            match Connection::accept(listener) {
                Ok(connection) => {
                    let resident = self.clone();
                    if let Err(error) = spawn("request", move || resident.serve_one(connection)) {
                        warn!(error = full(&error), "a connection is dropped");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    warn!(%error, "refused");
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Out of descriptors, perhaps; those who wait are not lost.
                    warn!(%error, "could not accept a connection");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// One request. What goes wrong is the other side's to hear.
    fn serve_one(self: &Arc<Self>, connection: Connection) {
        let mut buffer = vec![0; MESSAGE + 1];
        let (length, descriptors) = match connection.receive(&mut buffer) {
            Ok((0, _)) => return,
            Ok(received) => received,
            Err(error) => return warn!(%error, "could not read a request"),
        };
        let answer = match decode_request(&buffer[..length]) {
            Err(error) => {
                warn!(error = full(&error), "closed a connection");
                refusal(error.into())
            }
            Ok(Request::Join { attachment, form }) => {
                return self.serve_join(connection, &attachment, form, descriptors);
            }
            Ok(Request::Leave { attachment }) => {
                drop(self.joined().remove(&attachment));
                // The one who waits for nothing tells its caller first.
                let sent = send(&connection, &Answer::Done);
                let _ = self.events.send(Event::Left);
                return log_unsent(sent);
            }
            Ok(Request::Status) => match self.status() {
                Ok(text) => Answer::Text(text),
                Err(error) => refusal(error),
            },
            Ok(Request::Plugin(request)) => match proxy::run(&self.config, &request) {
                Ok(answer) => answer,
                Err(error) => refusal(error),
            },
        };
        log_unsent(send(&connection, &answer));
    }

    fn serve_join(
        self: &Arc<Self>,
        connection: Connection,
        attachment: &Attachment,
        form: Form,
        descriptors: Vec<OwnedFd>,
    ) {
        let record = match self.record(attachment) {
            Ok(Some(record)) => record,
            Ok(None) => return log_unsent(send(&connection, &Answer::Unknown)),
            Err(error) => return log_unsent(send(&connection, &refusal(error))),
        };
        let mut descriptors = descriptors.into_iter();
        let joined = match form {
            Form::Descriptor => descriptors
                .next()
                .ok_or_else(|| bad_descriptor(attachment, "is missing"))
                .and_then(|pod| check_pod_tap(attachment, pod))
                .and_then(|pod| {
                    let held = connection.try_clone().map_err(Error::Start)?;
                    self.join_taps(&record, pod, Some(held))
                })
                .map(|()| send(&connection, &Answer::Done)),
            // Before the first frame: the answer.
            Form::Frames => {
                let answered = send(&connection, &Answer::Done);
                answered.map_err(Error::Start).and_then(|()| {
                    let frames = connection.try_clone().map_err(Error::Start)?;
                    self.join_over(&record, frames).map(Ok)
                })
            }
        };
        match joined {
            Ok(sent) => {
                log_unsent(sent);
                if let Some(owner) = descriptors.next() {
                    self.watch(attachment.clone(), owner);
                }
            }
            Err(error) => {
                warn!(%attachment, error = full(&error), "not joined");
                if form == Form::Descriptor {
                    log_unsent(send(&connection, &refusal(error)));
                }
                let _ = self.events.send(Event::Left);
            }
        }
    }

    /// Waits, on a thread, for the end of whoever could ask for DEL.
    fn watch(&self, attachment: Attachment, owner: OwnedFd) {
        let stopped = match self.joined().get(&attachment).map(Joined::stopped) {
            Some(Ok(stopped)) => stopped,
            Some(Err(error)) => return warn!(%attachment, %error, "its owner is not watched"),
            None => return,
        };
        let events = self.events.clone();
        let name = attachment.clone();
        let wait = move || {
            loop {
                let mut fds = [
                    PollFd::new(owner.as_fd(), PollFlags::POLLIN),
                    PollFd::new(stopped.as_fd(), PollFlags::empty()),
                ];
                match poll(&mut fds, PollTimeout::NONE) {
                    Err(Errno::EINTR) => {}
                    _ if fds[0].any() == Some(true) => {
                        let _ = events.send(Event::Orphaned(attachment));
                        return;
                    }
                    _ => return,
                }
            }
        };
        if let Err(error) = spawn("owner", wait) {
            warn!(attachment = %name, error = full(&error), "its owner is not watched");
        }
    }

    fn status(&self) -> Result<String, Error> {
        let joined = self.joined();
        let none = Both::default();
        let attachments: Vec<(Attachment, Form)> = self
            .records()?
            .iter()
            .map(|record| {
                let form = record.tap.as_ref().map(|tap| tap.form);
                (record.attachment(), form.unwrap_or_default())
            })
            .collect();
        let shown: Vec<Shown<'_>> = attachments
            .iter()
            .map(|(attachment, form)| {
                let joined = joined.get(attachment);
                Shown {
                    attachment,
                    form: joined.map_or(*form, |joined| joined.form),
                    joined: joined.is_some_and(Joined::is_alive),
                    counters: joined.map_or(&none, |joined| &*joined.counters),
                }
            })
            .collect();
        Ok(render(&shown))
    }

    /// Attends to what ends, until there is nothing left to do.
    fn attend(&self, events: &Receiver<Event>) {
        // When an attachment whose frames don't move is looked at again.
        let mut due: HashMap<Attachment, Instant> = HashMap::new();
        loop {
            let next = due.values().min().copied();
            let event = match next {
                Some(next) => events.recv_timeout(next.saturating_duration_since(Instant::now())),
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Ended(attachment)) => match self.record(&attachment) {
                    Ok(Some(record)) => {
                        due.insert(attachment, Instant::now() + patience(&record));
                    }
                    Ok(None) => {}
                    Err(error) => warn!(%attachment, error = full(&error), "its record"),
                },
                Ok(Event::Orphaned(attachment)) => self.give_up(&attachment),
                Ok(Event::Left) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let now = Instant::now();
                    let late: Vec<Attachment> = due
                        .iter()
                        .filter(|(_, when)| **when <= now)
                        .map(|(attachment, _)| attachment.clone())
                        .collect();
                    for attachment in late {
                        due.remove(&attachment);
                        if let Some(again) = self.revive(&attachment) {
                            due.insert(attachment, Instant::now() + again);
                        }
                    }
                }
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.config.until_idle && self.is_idle() {
                info!("nothing left to relay");
                if let Err(error) = std::fs::remove_file(self.folder.join(socket::SOCKET)) {
                    warn!(%error, "the socket stays");
                }
                return;
            }
        }
    }

    /// Nothing joined, and nothing on record that could be.
    fn is_idle(&self) -> bool {
        self.joined().is_empty() && self.records().is_ok_and(|records| records.is_empty())
    }

    /// Frames have not moved for a while: joins again, or gives up. Returns
    /// when to look again.
    fn revive(&self, attachment: &Attachment) -> Option<Duration> {
        if self.joined().get(attachment).is_some_and(Joined::is_alive) {
            return None;
        }
        let record = match self.record(attachment) {
            Ok(record) => record?,
            Err(error) => {
                warn!(%attachment, error = full(&error), "its record");
                return Some(AWAY_FAR);
            }
        };
        let tap = record.tap.as_ref()?;
        if tap.caller.is_some() {
            self.give_up(attachment);
            return None;
        }
        let revived = match (&tap.form, &tap.pod) {
            (Form::Frames, Some(pod)) => launch::pod_side(pod, &self.config.cni_path),
            _ => self.rejoin(&record),
        };
        match revived {
            Ok(()) => Some(patience(&record)),
            Err(error) => {
                warn!(%attachment, error = full(&error), "could not be joined again");
                Some(AWAY_FAR)
            }
        }
    }

    /// Releases a far attachment whose pod nobody can reach any more.
    fn give_up(&self, attachment: &Attachment) {
        info!(%attachment, "its pod is gone");
        let released = self.record(attachment).and_then(|record| {
            match record.and_then(|record| record.tap?.caller) {
                Some(caller) => proxy::release(&self.config, attachment, &caller),
                None => Ok(()),
            }
        });
        if let Err(error) = released {
            warn!(%attachment, error = full(&error), "could not be released");
        }
    }
}

fn patience(record: &Record) -> Duration {
    match record.tap.as_ref().and_then(|tap| tap.caller.as_ref()) {
        Some(_) => AWAY_FAR,
        None => AWAY_LOCAL,
    }
}

/// The bridge's end: made and put into the bridge by the plugin.
fn open_bridge_tap(record: &Record) -> Result<File, Error> {
    open_existing(&record.host_name)
}

/// The pod's end, opened from here.
pub fn open_pod_tap(netns: &Path, ifname: &str) -> Result<File, Error> {
    in_namespace(netns, || open_existing(ifname)).map_err(|source| Error::Enter {
        path: netns.to_owned(),
        source,
    })?
}

/// One that was removed by hand isn't made anew, without address or bridge.
fn open_existing(name: &str) -> Result<File, Error> {
    nix::net::if_::if_nametoindex(name).map_err(|errno| Error::Tap {
        device: name.to_owned(),
        source: errno.into(),
    })?;
    open_tap(name, true)
}

/// As every end of a relay is opened; made if it isn't there.
pub fn open_tap(name: &str, persistent: bool) -> Result<File, Error> {
    let options = tap::Options {
        persistent,
        nonblocking: true,
        multi_queue: false,
    };
    let opened = tap::open(name, options).map_err(|source| Error::Tap {
        device: name.to_owned(),
        source,
    })?;
    Ok(opened.file)
}

/// A descriptor from outside has to be the TAP it should be.
fn check_pod_tap(attachment: &Attachment, descriptor: OwnedFd) -> Result<File, Error> {
    let told = tap::describe(&descriptor)
        .map_err(|error| bad_descriptor(attachment, &format!("is no TAP: {error}")))?;
    if told.name != attachment.ifname || !told.has_header {
        let what = format!("is {:?}, or has no virtio-net header", told.name);
        return Err(bad_descriptor(attachment, &what));
    }
    fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(|error| bad_descriptor(attachment, &format!("can't be set up: {error}")))?;
    Ok(descriptor.into())
}

fn bad_descriptor(attachment: &Attachment, what: &str) -> Error {
    Error::Descriptor {
        attachment: attachment.clone(),
        what: what.to_owned(),
    }
}

fn refusal(error: Error) -> Answer {
    Answer::Failed(error.into_object())
}

fn send(connection: &Connection, answer: &Answer) -> io::Result<()> {
    let message = encode(answer).map_err(io::Error::other)?;
    connection.send(&message, &[])
}

/// A caller that has gone can't be told anything; somebody may wonder why.
fn log_unsent(sent: io::Result<()>) {
    if let Err(error) = sent {
        warn!(%error, "an answer was not taken");
    }
}

/// An error with its causes.
fn full(error: &dyn std::error::Error) -> String {
    match chain(error) {
        causes if causes.is_empty() => error.to_string(),
        causes => format!("{error}: {causes}"),
    }
}
