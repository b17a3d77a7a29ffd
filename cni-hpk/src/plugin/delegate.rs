//! Runs another plugin by the exec protocol: in this run's place, IPAM or a
//! `delegate`, with this run's environment but for another command where we
//! undo; or for the relay's callers, with an environment of theirs.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

use hpk_cni_types::{AddResult, Command, ErrorCode, ErrorObject};
use serde_json::Value;

use super::attachments::Record;
use super::error::Error;

/// Runs `plugin` for `command` and returns what it printed, if anything.
pub fn run(
    plugin: &str,
    folders: &[PathBuf],
    command: Command,
    conf: &Value,
) -> Result<Option<Value>, Error> {
    run_with(plugin, folders, command, conf, Vec::new())
}

/// Runs `plugin` for DEL of an attachment that isn't this run's.
pub fn del_for(plugin: &str, folders: &[PathBuf], record: &Record) -> Result<(), Error> {
    let netns = record.netns.as_deref().filter(|path| path.exists());
    let environment = vec![
        ("CNI_CONTAINERID", record.container_id.as_str().into()),
        ("CNI_IFNAME", record.ifname.as_str().into()),
        ("CNI_NETNS", netns.map(Into::into).unwrap_or_default()),
    ];
    run_with(plugin, folders, Command::Del, &record.conf, environment).map(drop)
}

/// Runs `plugin` for a command that came with CNI 1.1.0; one that doesn't know
/// it has nothing to say. (An old one may miss a container's id, code 3.)
pub fn run_if_known(
    plugin: &str,
    folders: &[PathBuf],
    command: Command,
    conf: &Value,
) -> Result<(), Error> {
    match run(plugin, folders, command, conf) {
        Err(Error::Delegate { source, .. })
            if matches!(
                source.code,
                ErrorCode::InvalidEnvironment
                    | ErrorCode::IncompatibleVersion
                    | ErrorCode::UnknownContainer
            ) =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Runs `plugin` with this process's environment, but for `environment`.
pub fn run_with(
    plugin: &str,
    folders: &[PathBuf],
    command: Command,
    conf: &Value,
    environment: Vec<(&str, OsString)>,
) -> Result<Option<Value>, Error> {
    let program = folders
        .iter()
        .map(|folder| folder.join(plugin))
        .find(|path| path.is_file() && !plugin.is_empty() && !plugin.contains('/'))
        .ok_or_else(|| Error::PluginNotFound {
            plugin: plugin.to_owned(),
            folders: folders.to_vec(),
        })?;
    let fail = |source| Error::Spawn {
        plugin: plugin.to_owned(),
        source,
    };
    let mut child = Process::new(program)
        .env("CNI_COMMAND", command.as_str())
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(fail)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that fails before it reads says why on stdout. A conf fits in
        // a pipe's buffer, so this doesn't wait for an answer being read.
        let _ = stdin.write_all(conf.to_string().as_bytes());
    }
    let output = child.wait_with_output().map_err(fail)?;
    let answer = || Error::Answer {
        plugin: plugin.to_owned(),
        output: format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stdout).trim()
        ),
    };
    if !output.status.success() {
        return Err(
            match serde_json::from_slice::<ErrorObject>(&output.stdout) {
                Ok(source) => Error::Delegate {
                    plugin: plugin.to_owned(),
                    source,
                },
                Err(_) => answer(),
            },
        );
    }
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let value = serde_json::from_slice(&output.stdout).map_err(|_| answer())?;
    Ok(Some(value))
}

/// Runs `plugin` for ADD and reads its result.
pub fn add(plugin: &str, folders: &[PathBuf], conf: &Value) -> Result<AddResult, Error> {
    let answer = |output: String| Error::Answer {
        plugin: plugin.to_owned(),
        output,
    };
    let value =
        run(plugin, folders, Command::Add, conf)?.ok_or_else(|| answer("no result".to_owned()))?;
    serde_json::from_value(value).map_err(|error| answer(format!("not a result: {error}")))
}

/// The plugin a configuration names.
pub fn plugin_of(conf: &Value) -> &str {
    conf.get("type").and_then(Value::as_str).unwrap_or_default()
}
