//! What can go wrong on the runtime's side.

use std::path::PathBuf;
use std::time::Duration;

use hpk_cni_types::{ConfError, ErrorObject, SpecVersion};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read network configuration {path}")]
    ReadConf {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("parse network configuration {path}")]
    ParseConf {
        path: PathBuf,
        #[source]
        source: ConfError,
    },
    /// No `*.conflist`, `*.conf` or `*.json` in the folder.
    #[error("no network configuration in {0}")]
    NoConf(PathBuf),
    #[error("CNI plugin {plugin:?} is in none of {folders:?}")]
    PluginNotFound {
        plugin: String,
        folders: Vec<PathBuf>,
    },
    #[error("run CNI plugin {plugin} for {command}")]
    Spawn {
        plugin: PathBuf,
        command: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The plugin was killed then.
    #[error("CNI plugin {plugin:?} did not finish {command} within {limit:?}")]
    TimedOut {
        plugin: String,
        command: &'static str,
        limit: Duration,
    },
    /// The plugin answered with an error object.
    #[error("CNI plugin {plugin:?} failed {command}")]
    Plugin {
        plugin: String,
        command: &'static str,
        #[source]
        source: ErrorObject,
    },
    /// The plugin failed, or answered something that isn't JSON of CNI.
    #[error("CNI plugin {plugin:?} gave no valid answer to {command} ({status}): {output}")]
    Answer {
        plugin: String,
        command: &'static str,
        status: String,
        output: String,
    },
    #[error("network {network:?} of version {version} has no {command}")]
    NotInVersion {
        network: String,
        version: SpecVersion,
        command: &'static str,
    },
    /// CHECK of an attachment that isn't in the cache.
    #[error("attachment {container_id} {ifname} of network {network:?} is not known")]
    UnknownAttachment {
        network: String,
        container_id: String,
        ifname: String,
    },
    #[error("result cache: {operation} {path}")]
    Cache {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("result cache: {path} is not a cached result")]
    CacheFormat {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// ADD failed and so did undoing it.
    #[error("{add}; and undoing it failed: {undo}")]
    AddAndUndo { add: Box<Error>, undo: Box<Error> },
    /// GC went on after failures; these are all of them.
    #[error("garbage collection of network {network:?}: {} failure(s): {}", failures.len(), join(failures))]
    Gc {
        network: String,
        failures: Vec<Error>,
    },
}

impl Error {
    /// The error object of the plugin, if it was a plugin that failed.
    pub fn plugin_error(&self) -> Option<&ErrorObject> {
        match self {
            Self::Plugin { source, .. } => Some(source),
            Self::AddAndUndo { add, .. } => add.plugin_error(),
            _ => None,
        }
    }
}

fn join(failures: &[Error]) -> String {
    failures
        .iter()
        .map(|failure| match std::error::Error::source(failure) {
            Some(source) => format!("{failure}: {source}"),
            None => failure.to_string(),
        })
        .collect::<Vec<_>>()
        .join("; ")
}
