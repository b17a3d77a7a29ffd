//! What `hpk-pause` and the shim that starts it share.
//!
//! `hpk-pause` is three small programs in one static binary:
//! - `hpk-pause` – the sandbox's PID 1: reaps, ends on SIGTERM or SIGINT.
//! - `hpk-pause init FD` – the first program of every container. Apptainer execs it as the
//!   container's init; it lets go of Apptainer, does what the OCI spec asks for and Apptainer has no
//!   flag for (mounts, devices, credentials), and becomes the user's program.
//! - `hpk-pause enter FD` – joins a running container's namespaces and becomes a program there.
//!
//! `init` and `enter` are told everything over the socket FD; nothing secret is in an argv.
//!
//! Layout:
//! - [`wire`] – the configuration's types and their encoding.
//! - [`channel`] – the messages on the socket, both sides' framing.
//! - [`sys`] – system calls that `nix` doesn't have, each behind a safe function.

pub mod channel;
pub mod sys;
pub mod wire;
