//! exec and attach: a process's streams carried to a caller over one upgraded connection.
//!
//! - [`wanted`] – which streams the caller asks for.
//! - [`channels`] – what a transport offers to the process's side: input, resizes, output, its end.
//! - [`session`] – which SPDY stream is which: a state machine without I/O; [`spdy`] drives it.
//! - [`websocket`] – the same over WebSocket; [`subprotocol`] – its dialects.
//! - [`status`] – the last word on the error stream.
//! - [`process`], [`exec`] – the process in the container, through the shim.
//! - [`attach`] – the container's own process: its log as output, its FIFO as input.

pub mod attach;
pub mod channels;
pub mod exec;
pub mod process;
pub mod session;
pub mod spdy;
pub mod status;
pub mod subprotocol;
pub mod upgrade;
pub mod wanted;
pub mod websocket;

pub use channels::Channels;
pub use wanted::Wanted;
