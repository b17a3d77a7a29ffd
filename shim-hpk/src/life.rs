//! A process's life: which call is legal when, and who tells of its end. No I/O.

use crate::{apply::reaper::Exit, error::Error};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// The container is being made; there is no process to speak of.
    Creating,
    /// It waits to be started.
    Created,
    /// Its start has not been announced yet; if it ended already, so.
    Starting(Option<Exit>),
    Running,
    Stopped(Exit),
}

impl Life {
    /// Create has made it.
    pub fn created(&mut self) {
        if *self == Self::Creating {
            *self = Self::Created;
        }
    }

    /// Start is asked for.
    pub fn start(&mut self, what: &str) -> Result<(), Error> {
        match self {
            Self::Created => {
                *self = Self::Starting(None);
                Ok(())
            }
            Self::Creating => Err(Error::Precondition(format!(
                "{what} is still being created"
            ))),
            Self::Starting(_) | Self::Running => {
                Err(Error::Precondition(format!("{what} is already started")))
            }
            Self::Stopped(_) => Err(Error::Precondition(format!("{what} has stopped"))),
        }
    }

    /// The start is announced: an end that came before may be announced now.
    pub fn started(&mut self) -> Option<Exit> {
        let Self::Starting(exit) = *self else {
            return None;
        };
        *self = exit.map_or(Self::Running, Self::Stopped);
        exit
    }

    /// It ended: true if that may be announced at once.
    pub fn ended(&mut self, exit: Exit) -> bool {
        match self {
            Self::Starting(pending @ None) => {
                *pending = Some(exit);
                false
            }
            Self::Starting(Some(_)) | Self::Stopped(_) => false,
            Self::Creating | Self::Created | Self::Running => {
                *self = Self::Stopped(exit);
                true
            }
        }
    }

    /// The end, if it has come.
    pub fn exit(&self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) | Self::Starting(Some(exit)) => Some(*exit),
            _ => None,
        }
    }

    /// There is a process that can be signalled.
    pub fn is_alive(&self) -> bool {
        matches!(self, Self::Created | Self::Starting(None) | Self::Running)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const EXIT: Exit = Exit {
        code: 3,
        at: SystemTime::UNIX_EPOCH,
    };

    #[test]
    fn an_end_before_the_start_is_announced_comes_after_it() {
        let mut life = Life::Created;
        life.start("c").unwrap();
        assert!(!life.ended(EXIT));
        assert_eq!(life.started(), Some(EXIT));
        assert_eq!(life, Life::Stopped(EXIT));
    }

    #[test]
    fn an_end_is_announced_once() {
        let mut life = Life::Running;
        assert!(life.ended(EXIT));
        assert!(!life.ended(Exit { code: 4, ..EXIT }));
        assert_eq!(life.exit(), Some(EXIT));
    }

    #[test]
    fn a_second_start_is_refused() {
        let mut life = Life::Created;
        life.start("c").unwrap();
        assert_eq!(life.started(), None);
        assert_eq!(
            life.start("c").unwrap_err().to_string(),
            "c is already started"
        );
        life.ended(EXIT);
        assert_eq!(life.start("c").unwrap_err().to_string(), "c has stopped");
    }

    #[test]
    fn a_created_process_killed_before_its_start_has_stopped() {
        let mut life = Life::Created;
        assert!(life.is_alive());
        assert!(life.ended(EXIT));
        assert!(!life.is_alive());
    }
}
