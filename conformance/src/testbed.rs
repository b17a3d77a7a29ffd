//! Commands on the testbed's hosts, each with a time limit.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Seconds that a command gets unless its caller says otherwise.
const LIMIT: Duration = Duration::from_secs(60);

/// The testbed, by its command (design.md, "Testbed contract").
#[derive(Debug, Clone)]
pub struct Testbed {
    command: PathBuf,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The standard output of a command that succeeded.
    pub fn success(self) -> Result<String> {
        if self.status != 0 {
            bail!("exit {}: {}{}", self.status, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

/// One command on one host, as a shell script.
#[derive(Debug, Clone)]
pub struct Exec<'a> {
    testbed: &'a Testbed,
    user: &'a str,
    host: &'a str,
    script: String,
    input: Option<String>,
    limit: Duration,
}

impl Testbed {
    pub fn new(command: PathBuf) -> Self {
        Self { command }
    }

    /// Takes the host off the network, or back to it.
    pub fn cut(&self, host: &str) -> Result<()> {
        self.run(&["cut", host])
    }

    pub fn heal(&self, host: &str) -> Result<()> {
        self.run(&["heal", host])
    }

    /// The checkout that it is part of.
    pub fn checkout(&self) -> Result<PathBuf> {
        let command = std::fs::canonicalize(&self.command);
        let command = command.with_context(|| format!("finding {}", self.command.display()))?;
        let checkout = command.parent().and_then(Path::parent);
        Ok(checkout
            .context("the testbed's command is in no checkout")?
            .to_owned())
    }

    /// The configuration with which this machine's ssh reaches its hosts as hpc.
    pub fn ssh_config(&self) -> Result<String> {
        let state = std::env::var("HPK_TESTBED_STATE");
        let state = state.unwrap_or_else(|_| "/var/lib/hpk-testbed".into());
        let config = format!("{state}/ssh/config");
        match Path::new(&config).exists() {
            true => Ok(config),
            false => bail!("{config} is missing: bring the testbed up anew"),
        }
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new("timeout")
            .args(["-k", "5"])
            .arg(LIMIT.as_secs().to_string())
            .arg(&self.command)
            .args(arguments)
            .output()
            .with_context(|| format!("running testbed {arguments:?}"))?;
        if !output.status.success() {
            bail!(
                "testbed {arguments:?}: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// A bash script as `user` on `host`.
    pub fn on<'a>(&'a self, user: &'a str, host: &'a str, script: impl Into<String>) -> Exec<'a> {
        Exec {
            testbed: self,
            user,
            host,
            script: script.into(),
            input: None,
            limit: LIMIT,
        }
    }
}

impl Exec<'_> {
    pub fn input(mut self, input: impl Into<String>) -> Self {
        self.input = Some(input.into());
        self
    }

    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// The command line that runs it, for callers that start it themselves.
    pub fn command(&self) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "-k", "5"])
            .arg(self.limit.as_secs().to_string())
            .arg(&self.testbed.command)
            .args(["exec", "-u", self.user, self.host, "--", "bash", "-c"])
            .arg(&self.script);
        command
    }

    /// Starts it with its output piped; the caller reads and reaps.
    pub fn spawn(&self) -> Result<Child> {
        self.command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {:?} on {}", self.script, self.host))
    }

    /// Runs it to its end. Exit 124 means that the time limit struck.
    pub fn output(&self) -> Result<Output> {
        let what = || format!("running {:?} on {}", self.script, self.host);
        let mut child = self
            .command()
            .stdin(if self.input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(what)?;
        if let (Some(input), Some(mut pipe)) = (&self.input, child.stdin.take()) {
            pipe.write_all(input.as_bytes()).with_context(what)?;
        }
        let output = child.wait_with_output().with_context(what)?;
        Ok(Output {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The standard output, where success is expected.
    pub fn success(&self) -> Result<String> {
        self.output()?
            .success()
            .with_context(|| format!("{}@{}: {}", self.user, self.host, self.script))
    }
}

/// Ends a command that `spawn` started: SIGTERM, which passes through to the host.
pub fn stop(mut child: Child) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    match nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => return Err(error).context("ending a command of the testbed"),
    }
    drop(child.stdout.take());
    child.wait().context("ending a command of the testbed")?;
    Ok(())
}
