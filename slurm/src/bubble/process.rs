//! Keeps daemons running: each in a process group of its own, started again with growing pauses;
//! one that ends too often is the bubble's end.
//!
//! Logs are node-local (`/var/lib/hpk/logs`), so that a hanging shared file system stops no
//! daemon; they are cut when they grow large, and copied to `~/.hpk/clusters/ID/logs` at the end.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hpk_uplink::backoff::{Failures, TRIES, WINDOW};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::daemons::Daemon;
use super::reaper::{Reaper, describe};
use crate::logs::{last_lines, open_log, tail};

/// The first pause before a restart.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// How much of a log's end is looked at for what a daemon said last, in bytes.
const SAID: u64 = 4096;
/// A log is cut at this size, in bytes; one older part of it is kept.
const LOG_LIMIT: u64 = 16 << 20;

/// What happens to daemons.
#[derive(Debug)]
pub enum Event {
    Restarted(String),
    Fatal(String),
}

#[derive(Debug, Default)]
struct State {
    stopping: bool,
    /// Process ids of running daemons.
    running: BTreeMap<&'static str, i32>,
}

#[derive(Debug, Clone)]
pub struct Supervisor {
    reaper: Reaper,
    logs: PathBuf,
    events: mpsc::UnboundedSender<Event>,
    state: Arc<Mutex<State>>,
}

impl Supervisor {
    pub fn new(reaper: Reaper, logs: PathBuf) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let supervisor = Self {
            reaper,
            logs,
            events,
            state: Arc::default(),
        };
        tokio::spawn(supervisor.clone().cut_logs());
        (supervisor, receiver)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves it whole.
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn log_of(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Starts a daemon and keeps it running from now on.
    pub fn keep(&self, daemon: Daemon) {
        tokio::spawn(self.clone().run(daemon));
    }

    async fn run(self, daemon: Daemon) {
        let mut failures = Failures::new(FIRST_PAUSE);
        loop {
            let end = match self.spawn(&daemon) {
                Ok(Some(end)) => match end.await {
                    Ok(status) => self.describe(daemon.name, &status),
                    Err(_) => return, // the reaper has gone, and the bubble with it
                },
                Ok(None) => return,
                Err(error) => format!("{error:#}"),
            };
            self.lock().running.remove(daemon.name);
            if self.lock().stopping {
                return;
            }
            let event = match failures.add(Instant::now()) {
                None => Event::Fatal(format!(
                    "{} ended {TRIES} times within {} s, last with {end}",
                    daemon.name,
                    WINDOW.as_secs()
                )),
                Some(pause) => {
                    tokio::time::sleep(pause).await;
                    Event::Restarted(format!("{} ended ({end}); started again", daemon.name))
                }
            };
            let fatal = matches!(event, Event::Fatal(_));
            // Nobody listens once the bubble is ending.
            let _ = self.events.send(event);
            if fatal {
                return;
            }
        }
    }

    /// None when the bubble is ending.
    fn spawn(&self, daemon: &Daemon) -> Result<Option<tokio::sync::oneshot::Receiver<WaitStatus>>> {
        if self.lock().stopping {
            return Ok(None);
        }
        let log = open_log(&self.log_of(daemon.name))?;
        let errors = log.try_clone().context("duplicating the log")?;
        let (program, arguments) = daemon.argv.split_first().context("no program")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(daemon.env.iter().cloned())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0);
        die_with_parent(&mut command);
        let child = command
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let pid = i32::try_from(child.id()).context("its process id")?;
        // Not waited for through `child`: the reaper waits for all.
        let end = self.reaper.register(pid);
        self.lock().running.insert(daemon.name, pid);
        Ok(Some(end))
    }

    /// Runs a program of the image to its end; what it says goes to its log.
    pub async fn run_once(&self, name: &'static str, argv: &[String]) {
        let program = Daemon {
            name,
            argv: argv.to_vec(),
            env: vec![("PATH".into(), super::daemons::PATH.into())],
        };
        if let Ok(Some(end)) = self.spawn(&program) {
            // Its log says what it has to say.
            let _ = end.await;
        }
        self.lock().running.remove(name);
    }

    /// How it ended; if by itself, with the last thing that it said.
    fn describe(&self, name: &str, status: &WaitStatus) -> String {
        match status {
            WaitStatus::Exited(..) => {
                let said = last_lines(&tail(&self.log_of(name), SAID), 1);
                match said.as_str() {
                    "" => format!("{}: it said nothing", describe(status)),
                    said => format!("{}: {said}", describe(status)),
                }
            }
            _ => describe(status),
        }
    }

    /// Process ids of the daemons, which are not pods.
    pub fn pids(&self) -> Vec<i32> {
        self.lock().running.values().copied().collect()
    }

    /// From now on an end is no failure.
    pub fn begin_stop(&self) {
        self.lock().stopping = true;
    }

    /// Signals one daemon, if it runs, and waits until it has ended, at most for `limit`. Not its group: what it runs itself
    /// need not know the signal.
    pub async fn signal_to_end(&self, name: &str, signal: Signal, limit: Duration) {
        let Some(pid) = self.lock().running.get(name).copied() else {
            return;
        };
        // One that has ended meanwhile is seen as such below.
        let _ = kill(Pid::from_raw(pid), signal);
        let end = Instant::now() + limit;
        while self.lock().running.contains_key(name) {
            if Instant::now() > end {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends one daemon: SIGTERM, and after `limit` SIGKILL.
    pub async fn stop(&self, name: &str, limit: Duration) {
        let Some(pid) = self.lock().running.get(name).copied() else {
            return;
        };
        let group = Pid::from_raw(pid);
        // One that has ended meanwhile is what is wanted.
        let _ = killpg(group, Signal::SIGTERM);
        let end = Instant::now() + limit;
        while self.lock().running.contains_key(name) {
            if Instant::now() > end {
                let _ = killpg(group, Signal::SIGKILL);
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn cut_logs(self) {
        loop {
            tokio::time::sleep(Duration::from_secs(20)).await;
            let names: Vec<_> = self.lock().running.keys().copied().collect();
            for name in names {
                let path = self.log_of(name);
                let large = path
                    .metadata()
                    .is_ok_and(|metadata| metadata.len() > LOG_LIMIT);
                // The daemon appends, so that it goes on at the new end. What it writes between
                // the two calls is lost, which a log of this size can bear.
                if large && std::fs::copy(&path, path.with_extension("log.1")).is_ok() {
                    let _ = OpenOptions::new().write(true).truncate(true).open(&path);
                }
            }
        }
    }
}

/// The child is killed when this process's main thread ends, however it ends.
#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call (prctl), which is
    // async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(argv: &[&str]) -> Daemon {
        Daemon {
            name: "test",
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        }
    }

    /// One test, since a reaper waits for every child of this process.
    #[tokio::test]
    async fn a_daemon_that_ends_is_started_again_and_its_words_are_told() {
        let logs = tempfile::tempdir().unwrap();
        let reaper = Reaper::start().unwrap();
        let (supervisor, mut events) = Supervisor::new(reaper, logs.path().to_owned());
        supervisor.keep(daemon(&["sh", "-c", "echo no disk; exit 3"]));
        let Some(Event::Restarted(text)) = events.recv().await else {
            panic!("no restart");
        };
        assert!(text.contains("exit code 3: no disk"), "{text}");
        supervisor.keep(daemon(&["/no/such/program"]));
        loop {
            match events.recv().await {
                Some(Event::Restarted(text)) if text.contains("/no/such/program") => break,
                Some(Event::Restarted(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        let ready = logs.path().join("ready");
        nix::unistd::mkfifo(&ready, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!(
            "trap 'kill $child; wait $child; echo its child ended with $?; exit 4' USR1
            sleep 1000 & child=$!
            echo > {}
            wait",
            ready.display()
        );
        supervisor.keep(daemon(&["sh", "-c", &script]));
        tokio::fs::read(&ready).await.unwrap();
        let limit = Duration::from_secs(10);
        supervisor
            .signal_to_end("test", Signal::SIGUSR1, limit)
            .await;
        loop {
            match events.recv().await {
                // 128 and SIGTERM's number: the script's own signal, not the daemon's.
                Some(Event::Restarted(text)) if text.contains("ended with 143") => break,
                Some(Event::Restarted(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        supervisor.begin_stop();
    }
}
