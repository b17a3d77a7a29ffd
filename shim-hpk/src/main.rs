//! `containerd-shim-hpk-v2`: containerd's runtime v2 with Apptainer as the engine.
//!
//! `start` answers with the address of a shim (one per pod), `delete` cleans up after a dead one,
//! `-info` tells what the runtime can do; the shim itself serves the Task API (`containerd.task.v2.Task`
//! and `containerd.task.v3.Task`) over ttrpc until it has no container left and is told to shut down.
//! It can't tell containerd from another caller, needs no privilege that a user namespace doesn't
//! give, and keeps nothing outside the bundle but its socket and the container's cgroup.
//!
//! Layout:
//! - [`config`] – the bundle's spec. [`plan`] – what it takes. [`apply`] – doing it.
//! - crate `hpk-cgroup` – limits, Pause, where a cgroup can be had. [`stats`] – figures.
//! - [`service`] – the Task API. [`life`] – which call is legal when. [`events`].
//! - [`stdio`], [`fifo`], [`logger`], [`terminal`] – FIFOs, files, loggers, terminals.
//! - [`procfs`] – processes and their resource use. [`record`], [`cleanup`] – for `delete`.
//! - [`bootstrap`] – `start`. [`serve`] – the server's beginning and end. [`info`] – `-info`.
//! - [`error`] – and what the caller reads.

mod apply;
mod bootstrap;
mod cleanup;
mod config;
mod error;
mod events;
mod fifo;
mod info;
mod life;
mod logger;
mod plan;
mod procfs;
mod record;
mod serve;
mod service;
mod stats;
mod stdio;
mod terminal;

use std::{io::Write, process::ExitCode};

use containerd_shim::{Flags, protos::protobuf::Message};

/// The runtime's name, as in `ctr run --runtime`.
const RUNTIME: &str = "io.containerd.hpk.v2";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("containerd-shim-hpk-v2: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), error::Error> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let flags = containerd_shim::parse(&arguments).map_err(|e| error::Error::Invalid {
        field: "command line".into(),
        why: e.to_string(),
    })?;
    if flags.version {
        return answer(format!("{RUNTIME} {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    }
    if flags.info {
        return answer(&encode(&info::runtime_info()?)?);
    }
    match flags.action.as_str() {
        "start" => answer(&bootstrap::start(&flags)?),
        "delete" => answer(&encode(&cleanup::delete(&flags.id, bundle(&flags))?)?),
        "" => serve::serve(flags),
        other => Err(error::Error::Invalid {
            field: "action".into(),
            why: format!("{other:?} is neither start nor delete"),
        }),
    }
}

fn bundle(flags: &Flags) -> &std::path::Path {
    let given = Some(flags.bundle.as_str()).filter(|b| !b.is_empty());
    std::path::Path::new(given.unwrap_or("."))
}

fn encode(message: &impl Message) -> Result<Vec<u8>, error::Error> {
    message
        .write_to_bytes()
        .map_err(|e| error::Error::Container(format!("encode the answer: {e}")))
}

fn answer(bytes: &[u8]) -> Result<(), error::Error> {
    let mut stdout = std::io::stdout();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(error::Error::system("write the answer"))
}
