//! `SHIM start` and `SHIM delete`, as containerd runs them.
//!
//! Flags, environment and current directory (the bundle) are containerd 1.7–2.2's. The reply to
//! `start` is a plain address (a Task API v2 shim) or JSON `{"version","address","protocol"}`
//! (containerd 2.x); both are understood, and written to the bundle for adoption.

use std::{
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use containerd_shim_protos::{api::DeleteResponse, protobuf::Message};
use serde::{Deserialize, Serialize};

use crate::{Error, ExitStatus, types::system_time};

/// How long `start` may take; containerd's own limit is of that order.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long `delete` may take.
const DELETE_LIMIT: Duration = Duration::from_secs(30);

/// What every run of the shim binary is told.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// The shim's binary, an absolute path.
    pub binary: PathBuf,
    /// containerd namespace (`k8s.io`, `default`, …): a name space of container ids.
    pub namespace: String,
    /// Path of the events endpoint ([`crate::serve_events`]), given as TTRPC_ADDRESS.
    pub ttrpc_address: PathBuf,
    /// What containerd's own socket would be: only a part of the shim's socket name. Keep it fixed.
    pub address: PathBuf,
    /// Program that publishes events where ttrpc isn't spoken; shims of today don't run it.
    pub publish_binary: PathBuf,
    /// Verbose shim log.
    pub debug: bool,
    /// Further environment of the shim.
    pub env: Vec<(String, String)>,
}

impl Bootstrap {
    /// The usual: everything but these three has a default that works.
    pub fn new(
        binary: impl Into<PathBuf>,
        namespace: impl Into<String>,
        ttrpc_address: impl Into<PathBuf>,
    ) -> Self {
        let ttrpc_address = ttrpc_address.into();
        Self {
            binary: binary.into(),
            namespace: namespace.into(),
            address: ttrpc_address.clone(),
            ttrpc_address,
            publish_binary: PathBuf::from("/bin/true"),
            debug: false,
            env: Vec::new(),
        }
    }
}

/// A shim's answer to `start`, and the form of `bootstrap.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply {
    /// Task API version, 2 or 3.
    pub version: u32,
    /// `unix:///path`.
    pub address: String,
    /// `ttrpc`; `grpc` is refused.
    pub protocol: String,
}

/// Runs `SHIM start` in the bundle and remembers its answer there.
pub(crate) async fn start(bootstrap: &Bootstrap, id: &str, bundle: &Path) -> Result<Reply, Error> {
    ensure_log(bundle)?;
    let output = run(bootstrap, "start", id, bundle, START_LIMIT).await?;
    let text = String::from_utf8_lossy(&output);
    let reply = parse_reply(text.trim()).ok_or_else(|| Error::Reply {
        what: format!("the reply of {} start", bootstrap.binary.display()),
        text: text.trim().to_owned(),
    })?;
    let json = serde_json::to_vec(&reply).unwrap_or_default();
    write_atomic(&bundle.join("bootstrap.json"), &json)?;
    write_atomic(&bundle.join("address"), reply.address.as_bytes())?;
    Ok(reply)
}

/// The shim's address from a bundle, for adoption after the caller's restart. `None` if the bundle
/// has none: no shim was started for it.
///
/// # Errors
/// [`Error::File`] if it can't be read, [`Error::Reply`] if it is not understood.
pub fn read_address(bundle: &Path) -> Result<Option<String>, Error> {
    for name in ["bootstrap.json", "address"] {
        let path = bundle.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let text = text.trim();
                return match parse_reply(text) {
                    // `connect` takes the whole reply too, which says more than the address.
                    Some(_) => Ok(Some(text.to_owned())),
                    None => Err(Error::Reply {
                        what: path.display().to_string(),
                        text: text.to_owned(),
                    }),
                };
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::File {
                    action: "read",
                    path,
                    source,
                });
            }
        }
    }
    Ok(None)
}

/// Runs `SHIM delete`: cleans up after a shim that died (processes, mounts, files of container
/// `id`). The bundle's directory itself is the caller's to remove. Safe to repeat.
///
/// # Errors
/// As [`crate::Shim::start`].
pub async fn delete_binary(
    bootstrap: &Bootstrap,
    id: &str,
    bundle: &Path,
) -> Result<ExitStatus, Error> {
    let output = run(bootstrap, "delete", id, bundle, DELETE_LIMIT).await?;
    let response = DeleteResponse::parse_from_bytes(&output).map_err(|source| Error::Encoding {
        what: "the reply of delete",
        source,
    })?;
    Ok(ExitStatus {
        code: response.exit_status,
        at: system_time(response.exited_at.as_ref()),
        pid: response.pid,
    })
}

/// Reads a reply: JSON, or a plain address (which means Task API v2).
pub(crate) fn parse_reply(text: &str) -> Option<Reply> {
    if text.starts_with('{') {
        let reply: Reply = serde_json::from_str(text).ok()?;
        let known = (2..=3).contains(&reply.version) && reply.protocol == "ttrpc";
        return (known && !reply.address.is_empty()).then_some(reply);
    }
    let plain = text.starts_with("unix://") || text.starts_with('/');
    (plain && !text.contains(char::is_whitespace)).then(|| Reply {
        version: 2,
        address: text.to_owned(),
        protocol: "ttrpc".to_owned(),
    })
}

async fn run(
    bootstrap: &Bootstrap,
    action: &'static str,
    id: &str,
    bundle: &Path,
    limit: Duration,
) -> Result<Vec<u8>, Error> {
    let mut command = tokio::process::Command::new(&bootstrap.binary);
    if bootstrap.debug {
        command.arg("-debug");
    }
    command
        .args(["-namespace", &bootstrap.namespace, "-id", id])
        .arg("-address")
        .arg(&bootstrap.address)
        .arg("-publish-binary")
        .arg(&bootstrap.publish_binary)
        .arg("-bundle")
        .arg(bundle)
        .arg(action)
        .current_dir(bundle)
        .env("TTRPC_ADDRESS", &bootstrap.ttrpc_address)
        .env("GRPC_ADDRESS", &bootstrap.address)
        .env("NAMESPACE", &bootstrap.namespace)
        .env("MAX_SHIM_VERSION", "3")
        .envs(bootstrap.env.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let spawn_error = |source| Error::Spawn {
        binary: bootstrap.binary.clone(),
        action,
        source,
    };
    let child = command.spawn().map_err(spawn_error)?;
    let output = tokio::time::timeout(limit, child.wait_with_output())
        .await
        .map_err(|_| Error::TimedOut {
            binary: bootstrap.binary.clone(),
            action,
            limit,
        })?
        .map_err(spawn_error)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.is_empty() {
        said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    }
    Err(Error::Exit {
        binary: bootstrap.binary.clone(),
        action,
        status: output.status.to_string(),
        output: said,
    })
}

/// A shim opens `BUNDLE/log` for writing. containerd makes it a FIFO that it reads; a regular file
/// needs no reader, so that neither side's restart matters.
fn ensure_log(bundle: &Path) -> Result<(), Error> {
    let path = bundle.join("log");
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map(drop)
        .map_err(|source| Error::File {
            action: "create",
            path,
            source,
        })
}

fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|source| Error::File {
            action: "write",
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_address_is_a_v2_shim() {
        let reply = parse_reply("unix:///run/containerd/s/abc").unwrap();
        assert_eq!(
            (reply.version, reply.address.as_str()),
            (2, "unix:///run/containerd/s/abc")
        );
    }

    #[test]
    fn json_tells_the_version() {
        let reply =
            parse_reply(r#"{"version":3,"address":"unix:///s","protocol":"ttrpc"}"#).unwrap();
        assert_eq!((reply.version, reply.address.as_str()), (3, "unix:///s"));
    }

    #[test]
    fn grpc_other_versions_and_noise_are_refused() {
        assert_eq!(
            parse_reply(r#"{"version":3,"address":"x","protocol":"grpc"}"#),
            None
        );
        assert_eq!(
            parse_reply(r#"{"version":9,"address":"x","protocol":"ttrpc"}"#),
            None
        );
        assert_eq!(parse_reply("panic: oh no"), None);
        assert_eq!(parse_reply(""), None);
    }

    #[test]
    fn a_bundle_without_a_shim_has_no_address() {
        let dir = std::env::temp_dir();
        assert_eq!(read_address(&dir.join("hpk-no-such-bundle")).unwrap(), None);
    }
}
