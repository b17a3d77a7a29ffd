//! Programs that are asked something, and end.

use std::{
    fs::File,
    io::{Read, Seek},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{
    launch::terminate,
    reaper::{self, Reaper},
};
use crate::error::Error;

const LIMIT: Duration = Duration::from_secs(20);

/// Runs a program that takes no input; gives what it says on stdout.
///
/// # Errors
/// If it can't be run, fails (with its stderr), or takes too long.
pub async fn ask(command: &mut Command, reaper: &Reaper) -> Result<String, Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let memory = |name| -> Result<File, Error> {
        let made = memfd_create(name, MFdFlags::MFD_CLOEXEC);
        made.map(File::from)
            .map_err(Error::system("make a file for an answer"))
    };
    let (mut answer, mut complaint) = (memory(c"answer")?, memory(c"complaint")?);
    let end_of = |file: &File| file.try_clone().map(Stdio::from);
    let failed = || Error::system(format!("run {name}"));
    let child = command
        .stdin(Stdio::null())
        .stdout(end_of(&answer).map_err(failed())?)
        .stderr(end_of(&complaint).map_err(failed())?)
        .spawn()
        .map_err(failed())?;
    let pid = child.id() as i32;
    let exit = reaper.watch(pid);
    let ended = tokio::time::timeout(LIMIT, reaper::ended(exit.clone())).await;
    let Ok(ended) = ended else {
        terminate(pid);
        reaper::ended(exit).await;
        return Err(Error::TimedOut {
            what: "a program that was asked",
            seconds: LIMIT.as_secs(),
        });
    };
    let text = |file: &mut File| {
        let mut bytes = Vec::new();
        let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
        read.map(|_| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(Error::system(format!("read what {name} said")))
    };
    if ended.code != 0 {
        return Err(Error::Precondition(format!(
            "{name} failed (exit code {}): {}",
            ended.code,
            text(&mut complaint)?.trim()
        )));
    }
    text(&mut answer)
}
