//! Waits for every child, those inherited from dead daemons included, and tells whoever asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context as _, Result};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

type Waiters = HashMap<i32, oneshot::Sender<WaitStatus>>;

/// Assumes that nothing else in this process waits for children, and that a child is registered
/// before the runtime's only thread gets to the reaper's task again.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    waiters: Arc<Mutex<Waiters>>,
}

impl Reaper {
    pub fn start() -> Result<Self> {
        let reaper = Self::default();
        let mut signals = signal(SignalKind::child()).context("catching SIGCHLD")?;
        let own = reaper.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                own.reap();
            }
        });
        Ok(reaper)
    }

    /// The end of that child, once.
    pub fn register(&self, pid: i32) -> oneshot::Receiver<WaitStatus> {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(pid, sender);
        receiver
    }

    fn reap(&self) {
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(status) => {
                    let waiter = status
                        .pid()
                        .and_then(|pid| self.lock().remove(&pid.as_raw()));
                    if let Some(waiter) = waiter {
                        // Nobody waits any more when the bubble is ending.
                        let _ = waiter.send(status);
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        // A panic while it was held leaves the map whole.
        self.waiters
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// An end, as people say it.
pub fn describe(status: &WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("signal {signal}"),
        other => format!("{other:?}"),
    }
}
