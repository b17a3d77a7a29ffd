//! What the plugin asks of the resident daemon.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpk_cni_types::ErrorObject;
use serde_json::Value;

use super::error::Error;
use super::launch;
use super::socket::{self, Connection};
use super::wire::{
    Answer, Attachment, Form, MESSAGE, PluginRequest, Request, decode_answer, encode,
};

/// How long a daemon that is starting, or starting anew, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks for its socket.
const PAUSE: Duration = Duration::from_millis(20);

/// The resident daemon that listens in a folder.
#[derive(Clone, Debug)]
pub struct Daemon {
    folder: PathBuf,
}

impl Daemon {
    pub fn of(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Joins a TAP that we can open ourselves. A daemon that isn't there is
    /// started, for as long as it has something to do.
    pub fn join(
        &self,
        attachment: &Attachment,
        tap: &File,
        data_dir: &Path,
        cni_path: &[PathBuf],
    ) -> Result<(), Error> {
        let request = Request::Join {
            attachment: attachment.clone(),
            form: Form::Descriptor,
        };
        let answer = self.ask_started(&request, &[tap.as_fd()], data_dir, cni_path)?;
        done(answer, attachment)
    }

    /// Lets go of both ends. A daemon that isn't there holds nothing.
    pub fn leave(&self, attachment: &Attachment) -> Result<(), Error> {
        let request = Request::Leave {
            attachment: attachment.clone(),
        };
        match self.ask(&request, &[]) {
            Err(Error::NoDaemon { .. }) => {
                socket::sweep(&self.folder).map_err(|source| Error::File {
                    operation: "remove the socket in",
                    path: self.folder.clone(),
                    source,
                })
            }
            // It has ended meanwhile, for want of anything to do.
            Err(Error::Talk { source, .. }) if is_end(&source) => Ok(()),
            Err(error) => Err(error),
            Ok((answer, _)) => done(answer, attachment),
        }
    }

    /// Counters, as Prometheus reads them.
    pub fn status(&self) -> Result<String, Error> {
        match self.ask(&Request::Status, &[])?.0 {
            Answer::Text(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether somebody listens.
    pub fn is_there(&self) -> bool {
        Connection::open(&self.folder).is_ok()
    }

    /// Waits until somebody listens.
    pub fn wait(&self) -> Result<(), Error> {
        self.connect_until(Instant::now() + PATIENCE).map(drop)
    }

    /// Has the plugin run on the daemon's side. A daemon that is being started
    /// anew is waited for; one whose folder is gone isn't.
    pub fn plugin(&self, request: PluginRequest) -> Result<Option<(Attachment, Value)>, Error> {
        let request = Request::Plugin(request);
        let connection = self.connect_until(Instant::now() + PATIENCE)?;
        match self.exchange(&connection, &request, &[])? {
            Answer::Done => Ok(None),
            Answer::Added { attachment, result } => Ok(Some((attachment, result))),
            Answer::Failed(object) => Err(Error::Refused(object)),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks to be joined, once, and returns the connection, which is the
    /// daemon's life line, and with [`Form::Frames`] the way of the frames.
    pub fn ask_to_join(
        &self,
        attachment: &Attachment,
        form: Form,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Connection, Error> {
        let request = Request::Join {
            attachment: attachment.clone(),
            form,
        };
        let (answer, connection) = self.ask(&request, descriptors)?;
        done(answer, attachment).map(|()| connection)
    }

    fn ask_started(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        data_dir: &Path,
        cni_path: &[PathBuf],
    ) -> Result<Answer, Error> {
        let end = Instant::now() + PATIENCE;
        loop {
            let asked = self.ask(request, descriptors);
            match &asked {
                Err(Error::NoDaemon { .. }) => launch::resident(data_dir, cni_path)?,
                // It ended, for want of anything to do, as we came.
                Err(Error::Talk { source, .. }) if is_end(source) => {}
                _ => return asked.map(|(answer, _)| answer),
            }
            if Instant::now() > end {
                return asked.map(|(answer, _)| answer);
            }
            self.connect_until(end)?;
        }
    }

    fn connect_until(&self, end: Instant) -> Result<Connection, Error> {
        loop {
            match self.connect() {
                Err(Error::NoDaemon { .. }) if self.folder.exists() && Instant::now() < end => {
                    std::thread::sleep(PAUSE);
                }
                other => return other,
            }
        }
    }

    fn connect(&self) -> Result<Connection, Error> {
        Connection::open(&self.folder).map_err(|source| {
            let folder = self.folder.clone();
            match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    Error::NoDaemon { folder, source }
                }
                _ => Error::Talk { folder, source },
            }
        })
    }

    fn ask(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Connection), Error> {
        let connection = self.connect()?;
        let answer = self.exchange(&connection, request, descriptors)?;
        Ok((answer, connection))
    }

    fn exchange(
        &self,
        connection: &Connection,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, Error> {
        let talk = |source| Error::Talk {
            folder: self.folder.clone(),
            source,
        };
        connection
            .send(&encode(request)?, descriptors)
            .map_err(talk)?;
        let mut buffer = vec![0; MESSAGE + 1];
        let (length, _) = connection.receive(&mut buffer).map_err(talk)?;
        if length == 0 {
            return Err(talk(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(decode_answer(&buffer[..length])?)
    }
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn done(answer: Answer, attachment: &Attachment) -> Result<(), Error> {
    match answer {
        Answer::Done => Ok(()),
        Answer::Unknown => Err(Error::Unknown(attachment.clone())),
        Answer::Failed(object) => Err(Error::Refused(object)),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(answer: &Answer) -> Error {
    match answer {
        Answer::Failed(object) => Error::Refused(ErrorObject::clone(object)),
        other => Error::Answer(format!("{other:?}")),
    }
}
