//! The caller's side of containerd's runtime v2: starts a shim as containerd does, speaks the Task
//! API over ttrpc, and serves the events endpoint a shim wants. Knows nothing of any one shim: it
//! drives `containerd-shim-hpk-v2` and the stock `containerd-shim-runc-v2` alike.
//!
//! Layout:
//! - [`bootstrap`] – `SHIM start` and `SHIM delete`: arguments, environment, the reply.
//! - [`shim`] – [`Shim`]: the Task API calls on one connection.
//! - [`types`] – what goes in and comes out of them, in this crate's own words.
//! - [`events`] – [`serve_events`]: the `containerd.services.events.ttrpc.v1.Events` endpoint.
//! - [`error`] – [`Error`], and what it means for the caller ([`Error::is_not_found`] …).
//!
//! # Expected flow
//!
//! ```no_run
//! # async fn f() -> Result<(), hpk_shim_client::Error> {
//! use hpk_shim_client::{serve_events, Bootstrap, CreateRequest, Shim};
//! use std::path::Path;
//!
//! let mut events = serve_events(Path::new("/run/hpk/events.ttrpc"))?; // once per process
//! tokio::spawn(async move { while let Some(event) = events.recv().await { println!("{event:?}") } });
//!
//! let bootstrap = Bootstrap::new("/usr/local/bin/containerd-shim-hpk-v2", "k8s.io", "/run/hpk/events.ttrpc");
//! let bundle = Path::new("/run/hpk/pods/UID/sandbox"); // holds config.json and an empty rootfs/
//! let shim = Shim::start(&bootstrap, "sandbox-id", bundle).await?;
//! // shim.address() is written to BUNDLE/address (and bootstrap.json) for adoption later.
//! let pid = shim.create(CreateRequest::new("sandbox-id", bundle)).await?;
//! shim.start_task("sandbox-id", "").await?;
//! let exit = shim.wait("sandbox-id", "").await?;
//! shim.delete("sandbox-id", "").await?;
//! shim.shutdown("sandbox-id").await?;
//! # let _ = (pid, exit); Ok(()) }
//! ```
//!
//! One shim per pod: call [`Shim::start`] for every container with its own bundle; a shim that
//! groups (by the annotations `io.kubernetes.cri.sandbox-id`/`container-type` in config.json)
//! answers with the address of the one that runs already.
//!
//! # Guarantees
//!
//! - Calls on one [`Shim`] may run at the same time; a pending [`Shim::wait`] holds up nothing.
//! - A call that fails because the shim is gone says so: [`Error::is_gone`].
//! - Events are hints: they may be lost while nobody serves. [`Shim::wait`] and [`Shim::state`]
//!   are the truth.
//!
//! # Assumptions
//!
//! A tokio runtime with IO and time; the bundle is readable by the shim (same user).

pub mod bootstrap;
pub mod error;
pub mod events;
pub mod shim;
pub mod types;

pub use bootstrap::{Bootstrap, delete_binary, read_address};
pub use error::Error;
pub use events::{Event, EventKind, Events, serve_events};
pub use shim::Shim;
pub use types::{
    Connection, CreateRequest, ExecRequest, ExitStatus, Mount, ProcessState, Stats, Stdio,
    TaskStatus,
};
