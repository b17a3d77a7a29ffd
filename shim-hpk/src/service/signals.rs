//! Kill.

use nix::errno::Errno;

use super::{Service, label};
use crate::error::Error;

impl Service {
    /// Signals a process, or all of a container.
    pub(super) fn signal(
        &self,
        id: &str,
        exec_id: &str,
        signal: i32,
        all: bool,
    ) -> Result<(), Error> {
        let what = label(id, exec_id);
        let pid = self.with_process(id, exec_id, |process| {
            if process.life.is_alive() && process.pid > 0 {
                Ok(process.pid)
            } else {
                Err(Error::NotFound(format!(
                    "process of {what} that can be signalled"
                )))
            }
        })?;
        let targets = if all && exec_id.is_empty() {
            self.membership(id)?.map(|m| m.pids()).unwrap_or_default()
        } else {
            vec![pid]
        };
        for target in targets {
            // The number as it is: `Signal` knows no real-time ones.
            match send_signal(target, signal) {
                Ok(()) => {}
                Err(Errno::ESRCH) if target != pid => {}
                Err(Errno::ESRCH) => return Err(Error::NotFound(format!("process of {what}"))),
                Err(Errno::EINVAL) => {
                    return Err(Error::Invalid {
                        field: "signal".into(),
                        why: signal.to_string(),
                    });
                }
                Err(e) => return Err(Error::system(format!("signal {what}"))(e)),
            }
        }
        if signal == libc::SIGKILL {
            // In cgroup v1 a frozen process takes it only once it is thawed.
            self.thaw(id)?;
        }
        Ok(())
    }
}

#[allow(unsafe_code)]
fn send_signal(pid: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: integers only; `pid` is positive, so it is one process.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}
