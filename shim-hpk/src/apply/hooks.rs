//! Hooks: programs of the caller's, run one after the other with the container's state on their stdin.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, killpg},
    },
    unistd::Pid,
};

use super::reaper;
use crate::{error::Error, plan::hooks::Hook};

const POLL: Duration = Duration::from_millis(2);
/// Of what a hook says, what an error tells.
const WORDS_LIMIT: usize = 1000;

/// Runs hooks until one fails.
///
/// # Errors
/// With the hook's place in the spec, and what it said.
pub async fn run(hooks: &[Hook], state: &[u8], reaper: &reaper::Reaper) -> Result<(), Error> {
    for hook in hooks {
        let mut running = Running::start(hook, state)?;
        let exit = reaper.watch(running.child.id() as i32);
        let ending = reaper::ended(exit.clone());
        let ended = match hook.timeout {
            Some(limit) => tokio::time::timeout(limit, ending).await.ok(),
            None => Some(ending.await),
        };
        if ended.is_none() {
            running.kill();
            reaper::ended(exit).await;
        }
        running.judge(ended.map(|exit| exit.code))?;
    }
    Ok(())
}

/// The same where there is no reaper, in a program that ends soon.
pub fn run_alone(hooks: &[Hook], state: &[u8]) -> Result<(), Error> {
    for hook in hooks {
        let mut running = Running::start(hook, state)?;
        let deadline = hook.timeout.map(|limit| Instant::now() + limit);
        let failed = |hook: &Hook| Error::system(format!("wait for {}", hook.field));
        let ended = loop {
            if let Some(status) = running.child.try_wait().map_err(failed(hook))? {
                let code = status
                    .code()
                    .or_else(|| status.signal().map(|signal| 128 + signal));
                break Some(code.unwrap_or_default() as u32);
            }
            if deadline.is_some_and(|at| Instant::now() > at) {
                running.kill();
                running.child.wait().map_err(failed(hook))?;
                break None;
            }
            std::thread::sleep(POLL);
        };
        running.judge(ended)?;
    }
    Ok(())
}

struct Running<'a> {
    hook: &'a Hook,
    child: Child,
    said: File,
}

impl<'a> Running<'a> {
    fn start(hook: &'a Hook, state: &[u8]) -> Result<Self, Error> {
        let failed = |what: &str| Error::system(format!("{}: {what}", hook.field));
        let memory = |name| -> std::io::Result<File> {
            Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC)?.into())
        };
        let mut input = memory(c"hook-state").map_err(failed("make its stdin"))?;
        input
            .write_all(state)
            .and_then(|()| input.rewind())
            .map_err(failed("write its stdin"))?;
        let said = memory(c"hook").map_err(failed("make its stderr"))?;
        let output = || said.try_clone().map_err(failed("duplicate a descriptor"));
        let mut command = Command::new(&hook.path);
        if let Some((name, rest)) = hook.args.split_first() {
            command.arg0(name).args(rest);
        }
        command
            .env_clear()
            .envs(hook.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::from(input))
            .stdout(output()?)
            .stderr(output()?)
            // So that all of it ends with its time.
            .process_group(0);
        // SAFETY: one system call, with integers. What a killed shim left half done is `delete`'s to undo.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command
            .spawn()
            .map_err(failed(&format!("run {}", hook.path.display())))?;
        Ok(Self { hook, child, said })
    }

    fn kill(&self) {
        // ESRCH: it has ended meanwhile.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
    }

    /// `code` is 128 + n by signal n, `None` if its time was over.
    fn judge(&mut self, code: Option<u32>) -> Result<(), Error> {
        let how = match code {
            Some(0) => return Ok(()),
            Some(code) => format!("exit code {code}"),
            None => format!(
                "not ended within {} s",
                self.hook.timeout.unwrap_or_default().as_secs()
            ),
        };
        let mut words = Vec::new();
        let read = self.said.rewind().and_then(|()| {
            (&self.said)
                .take(WORDS_LIMIT as u64)
                .read_to_end(&mut words)
        });
        Err(Error::Hook {
            field: self.hook.field.clone(),
            path: self.hook.path.clone(),
            how,
            said: match read {
                Ok(_) => String::from_utf8_lossy(&words).trim().to_owned(),
                Err(e) => format!("(its messages can't be read: {e})"),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Option<u64>) -> Hook {
        Hook {
            field: "hooks.createRuntime[0]".into(),
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![("GIVEN".into(), "value".into())],
            timeout: timeout.map(Duration::from_secs),
        }
    }

    #[test]
    fn a_hook_has_the_state_its_environment_and_nothing_else() {
        let script = r#"read -r state; [ "$state" = '{"id":"c1"}' ] && [ "$GIVEN" = value ] && [ -z "$HOME" ]"#;
        run_alone(&[shell(script, None)], b"{\"id\":\"c1\"}\n").unwrap();
    }

    #[test]
    fn the_first_failure_ends_the_row_and_says_what_the_hook_said() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("mark");
        let later = format!("echo >{}", mark.display());
        let hooks = [
            shell("echo no network >&2; exit 4", None),
            shell(&later, None),
        ];
        let error = run_alone(&hooks, b"{}").unwrap_err().to_string();
        assert_eq!(
            error,
            "hooks.createRuntime[0] /bin/sh failed (exit code 4): no network"
        );
        assert!(!mark.exists());
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed_with_what_it_started() {
        let from = Instant::now();
        let error = run_alone(&[shell("sleep 60 & wait", Some(1))], b"{}").unwrap_err();
        assert!(
            error.to_string().contains("not ended within 1 s"),
            "{error}"
        );
        assert!(from.elapsed() < Duration::from_secs(20));
    }
}
