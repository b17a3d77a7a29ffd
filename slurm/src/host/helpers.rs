//! The bubble's helpers on the host: kept running, started again with growing pauses, and ended
//! with this value.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use hpk_uplink::Uplink;
use hpk_uplink::backoff::{Failures, TRIES};
use tokio::process::Child;
use tokio::task::JoinSet;

use super::overlay::Overlay;
use super::uplink;
use crate::forward::Forward;
use crate::logs::{last_lines, open_log, tail};

/// The pause before the first restart.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How much of a log's end is looked at for a helper's last words, in bytes.
const SAID: u64 = 4096;

/// Which helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    Uplink,
    Overlay,
    ApiServerPort,
    EtcdPort,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Uplink => "the uplink",
            Self::Overlay => "the overlay",
            Self::ApiServerPort => "the API server's port",
            Self::EtcdPort => "etcd's port",
        }
    }

    fn log(self) -> &'static str {
        match self {
            Self::Uplink => "uplink.log",
            Self::Overlay => "hpk-net-daemon.log",
            Self::ApiServerPort => "apiserver-port.log",
            Self::EtcdPort => "etcd-port.log",
        }
    }
}

/// What it takes to start each helper, also anew.
#[derive(Debug)]
pub struct Plan {
    pub uplink: Uplink,
    /// None where the bubble runs it itself.
    pub overlay: Option<Overlay>,
    /// On the controller: the way from the host's ports.
    pub forwards: Vec<(Part, Forward)>,
    /// The folder of the helpers' logs.
    pub logs: PathBuf,
}

impl Plan {
    /// Where a helper says what goes wrong.
    pub fn log(&self, part: Part) -> PathBuf {
        self.logs.join(part.log())
    }

    /// None where this bubble has no such helper.
    async fn start(&self, part: Part) -> Result<Option<Child>> {
        let log = open_log(&self.log(part))?;
        Ok(match part {
            Part::Uplink => Some(uplink::start(&self.uplink, log).await?),
            Part::Overlay => match &self.overlay {
                Some(overlay) => Some(overlay.start(log)?),
                None => None,
            },
            Part::ApiServerPort | Part::EtcdPort => {
                match self.forwards.iter().find(|(of, _)| *of == part) {
                    Some((_, forward)) => Some(forward.start(log)?),
                    None => None,
                }
            }
        })
    }
}

/// The helpers that run.
#[derive(Debug)]
pub struct Helpers<'a> {
    plan: &'a Plan,
    /// Each waits for its child, which is killed when the task is dropped.
    running: JoinSet<(Part, String)>,
    failures: HashMap<Part, Failures>,
}

/// The end of a helper.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub part: Part,
    pub how: String,
}

impl<'a> Helpers<'a> {
    pub fn new(plan: &'a Plan) -> Self {
        Self {
            plan,
            running: JoinSet::new(),
            failures: HashMap::new(),
        }
    }

    pub async fn start(&mut self, part: Part) -> Result<()> {
        let Some(child) = self.plan.start(part).await? else {
            return Ok(());
        };
        let log = self.plan.log(part);
        self.running.spawn(wait(part, child, log));
        Ok(())
    }

    /// The next that ends; None where none runs.
    pub async fn ended(&mut self) -> Option<Ended> {
        let ended = self.running.join_next().await?;
        // Only a task that was dropped or panicked has no answer, and neither happens while we ask.
        let (part, how) = ended.ok()?;
        Some(Ended { part, how })
    }

    /// The pause before it may start again; None when it has ended too often.
    pub fn pause(&mut self, part: Part) -> Option<Duration> {
        let failures = self.failures.entry(part);
        failures
            .or_insert_with(|| Failures::new(FIRST_PAUSE))
            .add(Instant::now())
    }
}

async fn wait(part: Part, mut child: Child, log: PathBuf) -> (Part, String) {
    let status = match child.wait().await {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    let said = last_words(&log, 1);
    (part, format!("{} ended: {status}: {said}", part.name()))
}

/// The last lines of a log, as one line.
pub fn last_words(log: &Path, lines: usize) -> String {
    last_lines(&tail(log, SAID), lines)
}

/// What is said when a helper doesn't come back.
pub fn too_often(ended: &Ended) -> String {
    format!("{} times in a minute: {}", TRIES, ended.how)
}
