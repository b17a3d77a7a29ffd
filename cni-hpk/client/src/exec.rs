//! One run of one plugin: configuration on stdin, parameters in the
//! environment, a result or an error object on stdout.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hpk_cni_types::{ErrorCode, ErrorObject, env::Command};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::error::Error;

/// What goes into the environment of a run.
#[derive(Clone, Debug)]
pub struct Parameters<'a> {
    pub command: Command,
    pub container_id: &'a str,
    pub netns: Option<&'a Path>,
    pub ifname: &'a str,
    /// `CNI_ARGS`, encoded.
    pub args: String,
}

impl Parameters<'_> {
    fn environment(&self, folders: &[PathBuf]) -> Vec<(&'static str, OsString)> {
        let path = std::env::join_paths(folders).unwrap_or_default();
        let mut variables = vec![
            ("CNI_COMMAND", self.command.as_str().into()),
            ("CNI_PATH", path),
        ];
        if !self.container_id.is_empty() {
            variables.push(("CNI_CONTAINERID", self.container_id.into()));
            variables.push(("CNI_IFNAME", self.ifname.into()));
            variables.push(("CNI_ARGS", self.args.clone().into()));
            variables.push(("CNI_NETNS", self.netns.map(Into::into).unwrap_or_default()));
        }
        variables
    }
}

/// The plugin's program: the first of that name in `folders`.
pub fn find_plugin(plugin: &str, folders: &[PathBuf]) -> Result<PathBuf, Error> {
    folders
        .iter()
        .map(|folder| folder.join(plugin))
        .find(|path| path.is_file())
        .ok_or_else(|| Error::PluginNotFound {
            plugin: plugin.to_owned(),
            folders: folders.to_vec(),
        })
}

/// Runs `plugin` and returns what it printed, `None` if nothing. At the limit it is killed, with what it delegated to.
pub async fn run(
    plugin: &str,
    folders: &[PathBuf],
    parameters: &Parameters<'_>,
    conf: &Value,
    limit: Duration,
) -> Result<Option<Value>, Error> {
    let program = find_plugin(plugin, folders)?;
    let command = parameters.command.as_str();
    let spawn_error = |source| Error::Spawn {
        plugin: program.clone(),
        command,
        source,
    };
    let mut child = spawn(&program, parameters.environment(folders))
        .await
        .map_err(spawn_error)?;
    let mut stdin = child.stdin.take();
    let text = conf.to_string();
    let write = async move {
        if let Some(stdin) = stdin.as_mut() {
            // A plugin that fails early closes its stdin; what it prints counts.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        drop(stdin);
    };
    let group = child.id();
    let talk = async { tokio::join!(write, child.wait_with_output()) };
    let Ok(((), output)) = tokio::time::timeout(limit, talk).await else {
        if let Some(group) = group.and_then(|id| i32::try_from(id).ok()) {
            // Gone already is fine.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        return Err(Error::TimedOut {
            plugin: plugin.to_owned(),
            command,
            limit,
        });
    };
    let output = output.map_err(spawn_error)?;
    let answer = || Error::Answer {
        plugin: plugin.to_owned(),
        command,
        status: output.status.to_string(),
        output: excerpt(&output.stdout, &output.stderr),
    };
    if !output.status.success() {
        return Err(
            match serde_json::from_slice::<ErrorObject>(&output.stdout) {
                Ok(source) => Error::Plugin {
                    plugin: plugin.to_owned(),
                    command,
                    source,
                },
                Err(_) => answer(),
            },
        );
    }
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    serde_json::from_slice(&output.stdout)
        .map(Some)
        .map_err(|_| answer())
}

/// Starts the program; one that is just being installed (ETXTBSY) is tried
/// again for a moment, as libcni does.
async fn spawn(
    program: &Path,
    environment: Vec<(&'static str, OsString)>,
) -> std::io::Result<tokio::process::Child> {
    let mut attempt = 0;
    loop {
        let result = tokio::process::Command::new(program)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        match result {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && attempt < 5 => {
                attempt += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            other => return other,
        }
    }
}

/// The plugin doesn't know the command, or not in this version: for GC and
/// STATUS, which are newer than many plugins, that is no failure. (An old one
/// may miss a container's id, code 3.)
pub fn is_unknown_command(error: &Error) -> bool {
    error.plugin_error().is_some_and(|object| {
        matches!(
            object.code,
            ErrorCode::InvalidEnvironment
                | ErrorCode::IncompatibleVersion
                | ErrorCode::UnknownContainer
        )
    })
}

fn excerpt(stdout: &[u8], stderr: &[u8]) -> String {
    let text = if stderr.is_empty() { stdout } else { stderr };
    let text = String::from_utf8_lossy(text);
    let text = text.trim();
    match text.char_indices().nth(400) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None if text.is_empty() => "no output".to_owned(),
        None => text.to_owned(),
    }
}
