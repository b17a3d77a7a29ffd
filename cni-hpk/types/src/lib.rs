//! The words of the Container Network Interface, specification 1.1.0 and the
//! older versions plugins are still asked for (0.3.1, 0.4.0, 1.0.0).
//!
//! Knows no kernel, no Kubernetes and does no I/O: both sides of the exec
//! protocol, plugin and runtime, are written with it.
//!
//! Layout:
//! - [`version`]: the spec versions spoken, and the answer to VERSION
//! - [`conf`]: network configuration as a plugin reads it, and conflists
//! - [`result`]: what ADD returns, in the shape each version wants
//! - [`error`]: the error JSON and its codes
//! - [`env`]: the `CNI_*` variables and `CNI_ARGS`

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod conf;
pub mod env;
pub mod error;
pub mod result;
pub mod version;

pub use conf::{ConfError, NetConf, NetworkList, ValidAttachment};
pub use env::{Args, Command, Invocation};
pub use error::{ErrorCode, ErrorObject};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use version::{SpecVersion, UnsupportedVersion, VersionAnswer};
