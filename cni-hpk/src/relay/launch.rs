//! Starts the daemons of either side from a plugin's run, which ends before
//! they do.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::client::Daemon;
use super::error::Error;
use super::pod::PodSide;
use super::{folder_of, socket};

const PROGRAM: &str = "hpk-net-daemon";
/// What the pod's side says when frames can move.
pub const READY: &str = "ready";

/// Starts a resident daemon for `data_dir` that ends when it has nothing to do,
/// and waits until one listens.
pub fn resident(data_dir: &Path, cni_path: &[PathBuf]) -> Result<(), Error> {
    let folder = folder_of(data_dir);
    let mut command = command(&folder, cni_path)?;
    command.args(["relay", "serve", "--until-idle"]);
    command.arg("--data-dir").arg(data_dir);
    if let Ok(path) = std::env::join_paths(cni_path) {
        command.arg("--cni-path").arg(path);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    start(&mut command)?;
    Daemon::of(&folder).wait()
}

/// Starts a pod's side and waits until frames can move.
pub fn pod_side(side: &PodSide, cni_path: &[PathBuf]) -> Result<(), Error> {
    let mut command = command(&side.folder, cni_path)?;
    command.args(["relay", "pod"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = start(&mut command)?;
    let fail = |source| Error::Run {
        program: PROGRAM.into(),
        source,
    };
    if let Some(mut stdin) = child.stdin.take() {
        let text = serde_json::to_vec(side).map_err(|error| fail(error.into()))?;
        // One that fails before it reads says why.
        let _ = stdin.write_all(&text);
    }
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said).map_err(fail)?;
    }
    // Reaped when it ends, which may be after us.
    std::thread::spawn(move || child.wait());
    match said.trim() {
        READY => Ok(()),
        "" => Err(Error::PodSide(format!(
            "it ended without a word; see {}",
            side.folder.join(LOG).display()
        ))),
        words => Err(Error::PodSide(words.to_owned())),
    }
}

/// What daemons started here have to say, in their folder.
const LOG: &str = "daemon.log";

/// The program, in a session of its own, its log in `folder`.
fn command(folder: &Path, cni_path: &[PathBuf]) -> Result<Command, Error> {
    let path = folder.join(LOG);
    let open = || {
        socket::make_folder(folder)?;
        File::options().create(true).append(true).open(&path)
    };
    let log = open().map_err(|source| Error::File {
        operation: "open",
        path: path.clone(),
        source,
    })?;
    let mut command = Command::new(program(cni_path)?);
    command.stderr(log).current_dir("/");
    // SAFETY: setsid is async-signal-safe and touches no memory of ours.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    Ok(command)
}

fn start(command: &mut Command) -> Result<std::process::Child, Error> {
    command.spawn().map_err(|source| Error::Run {
        program: command.get_program().into(),
        source,
    })
}

/// Beside this program, among the plugins, or on PATH.
fn program(cni_path: &[PathBuf]) -> Result<PathBuf, Error> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| own.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(cni_path.iter().cloned())
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(PROGRAM))
        .find(|program| program.is_file())
        .ok_or_else(|| Error::NoProgram {
            folders: cni_path.to_vec(),
        })
}
