//! The CNI plugin: one run of the exec protocol.
//!
//! Expected flow: the environment and stdin become an [`Invocation`] and
//! a [`config::Config`]; `observe` looks at the kernel; [`plan`] decides what
//! is missing; `apply` does it. CHECK is a plan that must be empty.
//!
//! Guarantees: ADD that fails leaves nothing of the pod behind. DEL of what is
//! not there succeeds. Any number may run at once.
//!
//! Layout:
//! - [`config`]: stdin, `subnet.env` and the overlay's state, validated
//! - [`pools`]: the addresses a network may give away
//! - [`request`]: what is asked for one attachment
//! - [`ipam`]: who gives the addresses
//! - [`locks`]: who may change what
//! - [`plan`]: what is missing of the bubble's side and of the pod's
//! - [`node`]: observes and applies the bubble's side: bridge, sysctls, NAT
//! - [`pod`]: observes and applies the pod's side: veth, addresses, routes
//! - [`delegate`]: runs other plugins
//! - [`attachments`]: what was added, on disk
//! - [`commands`]: ADD, DEL, CHECK, GC, STATUS
//! - [`tap`], [`far`]: datapath `tap`, in the bubble and from outside
//! - [`error`]

pub mod attachments;
pub mod commands;
pub mod config;
pub mod delegate;
pub mod error;
pub mod far;
pub mod ipam;
pub mod locks;
pub mod node;
pub mod plan;
pub mod pod;
pub mod pools;
pub mod request;
pub mod tap;

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use hpk_cni_types::{Command, ErrorObject, Invocation, VersionAnswer};
use serde_json::Value;

use error::Error;

/// Runs the plugin: exit code 0 and a result, or 1 and an error object.
pub fn main() -> ExitCode {
    let mut stdin = Vec::new();
    let read = std::io::stdin().read_to_end(&mut stdin);
    let (text, code) = match read.map_err(Error::Stdin).and_then(|_| run(&stdin)) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(answer)) => (answer.to_string(), ExitCode::SUCCESS),
        Err(error) => (error_text(&error.into_object(), &stdin), ExitCode::FAILURE),
    };
    // A caller that has gone can't be told anything.
    let _ = writeln!(std::io::stdout(), "{text}");
    code
}

fn run(stdin: &[u8]) -> Result<Option<Value>, Error> {
    let invocation = Invocation::from_env()?;
    if invocation.command == Command::Version {
        let asked = asked_version(stdin).unwrap_or_else(|| "1.1.0".to_owned());
        return Ok(serde_json::to_value(VersionAnswer::to(&asked)).ok());
    }
    commands::run(&invocation, stdin)
}

/// The error object repeats the version asked, even one that is not spoken.
fn error_text(object: &ErrorObject, stdin: &[u8]) -> String {
    let mut object = object.clone();
    object.cni_version = asked_version(stdin).unwrap_or_default();
    serde_json::to_string(&object).unwrap_or_else(|_| object.to_string())
}

fn asked_version(stdin: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(stdin).ok()?;
    Some(value.get("cniVersion")?.as_str()?.to_owned())
}
