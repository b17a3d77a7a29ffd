//! Every child's end. The shim is a sub-reaper: a container's program becomes its child when
//! Apptainer goes, an exec's when its helper does.
//!
//! The runtime has one thread: between a spawn and [`Reaper::watch`] there is no await, so no end
//! can be missed; and a pid is watched before whatever makes it our child happens.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, 128 + n by signal n.
    pub code: u32,
    pub at: SystemTime,
}

/// Holds the end once there is one.
pub type ExitReceiver = watch::Receiver<Option<Exit>>;

/// Shared by everything that starts processes.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    watched: Arc<Mutex<HashMap<i32, watch::Sender<Option<Exit>>>>>,
}

impl Reaper {
    /// Starts reaping.
    ///
    /// # Errors
    /// If SIGCHLD can't be listened to.
    pub fn start() -> std::io::Result<Self> {
        let reaper = Self::default();
        let mut children = signal(SignalKind::child())?;
        let task = reaper.clone();
        tokio::spawn(async move {
            // A SIGCHLD before the handler was there would be lost: reap once first.
            task.reap();
            while children.recv().await.is_some() {
                task.reap();
            }
        });
        Ok(reaper)
    }

    /// Will tell of the end of `pid`, which must not have been reaped yet.
    pub fn watch(&self, pid: i32) -> ExitReceiver {
        let (sender, receiver) = watch::channel(None);
        self.lock().insert(pid, sender);
        receiver
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, watch::Sender<Option<Exit>>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self) {
        loop {
            let (pid, code) = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code as u32),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as u32),
                Ok(_) | Err(Errno::ECHILD) => return,
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    log::error!("reap: {e}");
                    return;
                }
            };
            let exit = Exit {
                code,
                at: SystemTime::now(),
            };
            if let Some(sender) = self.lock().remove(&pid.as_raw()) {
                sender.send_replace(Some(exit));
            }
        }
    }
}

/// Waits for the end.
pub async fn ended(mut exit: ExitReceiver) -> Exit {
    loop {
        if let Some(exit) = *exit.borrow_and_update() {
            return exit;
        }
        if exit.changed().await.is_err() {
            // The reaper only goes with the shim; a sender replaced means the pid was reused.
            return Exit {
                code: 255,
                at: SystemTime::now(),
            };
        }
    }
}
