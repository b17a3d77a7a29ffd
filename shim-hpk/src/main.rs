//! `containerd-shim-hpk-v2`: containerd's runtime v2 with Apptainer as the engine.
//!
//! `start` answers with the address of a shim (one per pod), `delete` cleans up after a dead one; the
//! shim itself serves the Task API (`containerd.task.v3.Task`) over ttrpc until it has no container
//! left and is told to shut down. It can't tell containerd from another caller, needs no privilege
//! that a user namespace doesn't give, and keeps nothing outside the bundle but its socket.
//!
//! Layout:
//! - [`config`] – the bundle's spec. [`plan`] – what it takes. [`apply`] – doing it.
//! - [`service`] – the Task API. [`life`] – which call is legal when. [`events`].
//! - [`stdio`], [`logger`] – FIFOs, files, loggers, terminals.
//! - [`procfs`] – processes and their resource use. [`record`], [`cleanup`] – for `delete`.
//! - [`bootstrap`] – `start` and `delete`. [`error`] – and what the caller reads.

mod apply;
mod bootstrap;
mod cleanup;
mod config;
mod error;
mod events;
mod life;
mod logger;
mod plan;
mod procfs;
mod record;
mod service;
mod stdio;

use std::process::ExitCode;

fn main() -> ExitCode {
    // `start` leaves a server behind, which must not hold what its caller had open.
    if let Err(e) = hpk_pause::sys::close_on_exec_from(3) {
        eprintln!("containerd-shim-hpk-v2: mark descriptors close-on-exec: {e}");
    }
    // One thread: a shim waits nearly always, and memory per pod is what counts.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let config = containerd_shim::Config {
                no_reaper: true,
                ..Default::default()
            };
            runtime.block_on(containerd_shim::asynchronous::run::<bootstrap::Shim>(
                "io.containerd.hpk.v2",
                Some(config),
            ));
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("containerd-shim-hpk-v2: start the runtime: {e}");
            ExitCode::FAILURE
        }
    }
}
