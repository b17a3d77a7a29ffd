//! The waiter's side: is the holder alive?

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::{EXPIRY, Error, Holder, nonce, read};

/// A waiter's view of a lease.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    me: Holder,
    seen: Option<(Vec<u8>, Instant)>,
}

impl Watch {
    /// Watches the lease at `path`.
    pub fn new(path: &Path) -> Result<Self, Error> {
        let me = Holder::this_process().map_err(|source| Error {
            action: "watching",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            me,
            seen: None,
        })
    }

    /// Looks once: removes the lease if its holder is dead. Gives the living holder; none if there is no lease (any more).
    pub fn look(&mut self) -> Result<Option<Holder>, Error> {
        let Some((bytes, holder)) = read(&self.path)? else {
            return Ok(None);
        };
        let gone = holder
            .as_ref()
            .is_some_and(|h| h.is_gone(&self.me, Path::new("/proc")));
        if self.is_expired(&bytes, Instant::now()) || gone {
            self.remove_dead(&bytes)?;
            return Ok(None);
        }
        Ok(Some(holder.unwrap_or_else(|| Holder {
            host: "an unknown host".to_owned(),
            ..self.me.clone()
        })))
    }

    pub(super) fn is_expired(&mut self, bytes: &[u8], now: Instant) -> bool {
        match &self.seen {
            Some((seen, since)) if seen == bytes => now.duration_since(*since) >= EXPIRY,
            _ => {
                self.seen = Some((bytes.to_vec(), now));
                false
            }
        }
    }

    pub(super) fn remove_dead(&self, dead: &[u8]) -> Result<(), Error> {
        let error = |source| Error {
            action: "removing the dead",
            path: self.path.clone(),
            source,
        };
        let mut away = self.path.as_os_str().to_owned();
        away.push(format!(".dead-{}", nonce().map_err(error)?));
        let away = PathBuf::from(away);
        match fs::rename(&self.path, &away) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()), // another waiter did
            other => other.map_err(error)?,
        }
        let moved = fs::read(&away).map_err(error)?;
        if moved != dead {
            // It came to life, or is a new holder's. If a third has taken the name meanwhile, that one holds it.
            let _ = fs::hard_link(&away, &self.path);
        }
        fs::remove_file(&away).map_err(error)
    }
}
