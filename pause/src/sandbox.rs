//! The sandbox's PID 1: holds the pod's namespaces, reaps what is orphaned to it (with a shared PID
//! namespace that is everybody), and ends with 0 on SIGTERM or SIGINT.

use std::process::ExitCode;

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
};

/// Runs until told to end.
pub fn run() -> ExitCode {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    // Blocked signals reach even PID 1 through sigwait, whatever their default action.
    if let Err(e) = signals.thread_block() {
        eprintln!("hpk-pause: block signals: {e}");
        return ExitCode::FAILURE;
    }
    loop {
        // A child may have ended before the signals were blocked: reap first, then wait.
        reap();
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(Errno::EINTR) => {}
            Ok(_) => return ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("hpk-pause: wait for a signal: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
}

fn reap() {
    while matches!(
        waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG),
        Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))
    ) {}
}
