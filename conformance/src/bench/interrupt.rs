//! Ctrl-C and SIGTERM: remembered, so that what was set up is torn down before the end.
//! The terminal sends Ctrl-C to the commands that run as well, which therefore end at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Whether a signal to end came since [`install`].
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

extern "C" fn remember(_signal: nix::libc::c_int) {
    REQUESTED.store(true, Ordering::Relaxed);
}

#[allow(unsafe_code)]
pub fn install() -> Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(remember),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }
            .with_context(|| format!("installing a handler of {signal}"))?;
    }
    Ok(())
}
