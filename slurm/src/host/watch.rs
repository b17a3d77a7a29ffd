//! While the bubble runs: its reports, the uplink's life, the signals and the standard input
//! that say stop; and the order in which it ends.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;
use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::instance::{Instance, last_lines};
use super::overlay::{self, Overlay};
use super::uplink::{self, Uplink};
use crate::cluster::Cluster;
use crate::launch::{now, time_left};
use crate::link::{self, Order, Receiver, Report, Sender};

/// How long the bubble may take to speak first, and to end once told so. Slurm kills 30 s after
/// its own SIGTERM.
const FIRST_WORD: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(20);
/// What the pods get of it.
const GRACE_SECONDS: u64 = 8;
/// A helper that ends so often within a minute doesn't come back.
const HELPER_TRIES: usize = 6;

/// What tells this process to stop: SIGTERM, SIGINT, or the end of its standard input.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    stdin: tokio::task::JoinHandle<()>,
}

impl StopSignals {
    pub fn catch() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("catching SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("catching SIGINT")?,
            stdin: tokio::spawn(end_of_input()),
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = &mut self.stdin => {}
        }
    }
}

/// Returns when standard input ends; never where it is no pipe or socket (a shell, /dev/null).
async fn end_of_input() {
    use std::os::unix::fs::FileTypeExt as _;
    let Ok(file) = std::fs::File::open("/proc/self/fd/0") else {
        return std::future::pending().await;
    };
    let kind = file.metadata().map(|metadata| metadata.file_type());
    if !kind.is_ok_and(|kind| kind.is_fifo()) {
        return std::future::pending().await;
    }
    let Ok(mut pipe) = tokio::net::unix::pipe::Receiver::from_file(file) else {
        return std::future::pending().await;
    };
    let mut buffer = [0; 64];
    while pipe.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

pub struct Watch<'a> {
    pub cluster: &'a Cluster,
    pub node: &'a str,
    pub instance: &'a Instance,
    pub uplink: &'a Uplink,
    pub overlay: Option<&'a Overlay>,
}

/// A helper of the bubble on the host, and when it failed.
#[derive(Debug)]
struct Helper {
    name: &'static str,
    child: Option<Child>,
    failures: Vec<Instant>,
    log: PathBuf,
}

impl Helper {
    fn new(name: &'static str, log: PathBuf) -> Self {
        Self {
            name,
            child: None,
            failures: Vec::new(),
            log,
        }
    }

    /// Waits for its end, and gives it in words; for ever where it doesn't run.
    async fn ended(&mut self) -> String {
        let Some(child) = &mut self.child else {
            return std::future::pending().await;
        };
        let status = match child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        format!("{}: {status}: {}", self.name, last_lines(&log, 1))
    }

    /// The pause before it may start again; None when it has failed too often.
    fn pause(&mut self) -> Option<Duration> {
        self.failures
            .retain(|at| at.elapsed() < Duration::from_secs(60));
        self.failures.push(Instant::now());
        let count = self.failures.len();
        (count < HELPER_TRIES).then(|| Duration::from_millis(50 << count))
    }
}

impl Watch<'_> {
    /// Returns when the bubble has ended: Ok if it was asked to, else the cause.
    pub async fn run(&self, listener: UnixListener, stop: &mut StopSignals) -> Result<()> {
        let local = &self.uplink.local;
        let mut uplink = Helper::new("the uplink", uplink::log_file(local));
        let mut overlay = Helper::new("the overlay", overlay::log_file(local));
        uplink.child = Some(self.uplink.start().await?);
        let stream = tokio::select! {
            stream = listener.accept() => stream.context("accepting the bubble's link")?.0,
            () = stop.wait() => return Ok(()),
            () = tokio::time::sleep(FIRST_WORD) => bail!("{}", self.last_words("has not begun in 30 s")),
        };
        let (mut receiver, mut sender) = link::split(stream);
        self.say(&format!("{} runs", self.instance.name));
        loop {
            tokio::select! {
                report = receiver.next::<Report>() => match report? {
                    None => bail!("{}", self.last_words("was killed from outside, or for want of memory")),
                    Some(Report::Failed { cause }) => {
                        // It ends by itself now.
                        await_end(&mut receiver).await;
                        bail!("{cause}");
                    }
                    Some(Report::Leased) => overlay.child = self.start_overlay()?,
                    Some(report) => self.tell(&report),
                },
                end = uplink.ended() => {
                    let Some(pause) = uplink.pause() else {
                        stop_bubble(&mut sender, &mut receiver).await;
                        bail!("ended {HELPER_TRIES} times in a minute: {end}");
                    };
                    self.say(&format!("ended, and is started again: {end}"));
                    tokio::time::sleep(pause).await;
                    uplink.child = Some(self.uplink.start().await?);
                    // A bubble that has gone is noticed by its end of the link.
                    let _ = sender.send(&Order::UplinkRestarted).await;
                },
                end = overlay.ended() => {
                    let Some(pause) = overlay.pause() else {
                        stop_bubble(&mut sender, &mut receiver).await;
                        bail!("ended {HELPER_TRIES} times in a minute: {end}");
                    };
                    self.say(&format!("ended, and is started again: {end}"));
                    tokio::time::sleep(pause).await;
                    overlay.child = self.start_overlay()?;
                },
                () = stop.wait() => {
                    stop_bubble(&mut sender, &mut receiver).await;
                    return Ok(());
                }
            }
        }
    }

    fn say(&self, text: &str) {
        println!("hpk: {}: {text}", self.node);
    }

    fn tell(&self, report: &Report) {
        match report {
            Report::Step { text, seconds } => self.say(&format!("{text} ({seconds} s)")),
            Report::Restarted { text } => self.say(text),
            Report::Ready { nodes } => self.tell_ready(*nodes),
            Report::Failed { .. } | Report::Leased => {}
        }
    }

    /// What the user is waiting for.
    fn tell_ready(&self, nodes: usize) {
        let cluster = self.cluster;
        let began = cluster.began.unwrap_or_else(now);
        let port = cluster.ports.apiserver;
        let user = std::env::var("USER").unwrap_or_else(|_| "USER".into());
        let login = std::env::var("SLURM_SUBMIT_HOST").unwrap_or_else(|_| "LOGIN".into());
        let nodes = if nodes == 1 {
            "1 node".into()
        } else {
            format!("{nodes} nodes")
        };
        println!("Ready in {} s: {nodes}", (now() - began).max(0));
        println!("    export KUBECONFIG=~/.hpk/kubeconfig");
        println!(
            "    from elsewhere: ssh -L {port}:{}:{port} {user}@{login}   and kubectl --server=https://127.0.0.1:{port}",
            cluster.controller_address
        );
        println!(
            "    the allocation ends: {}",
            time_left(cluster.ends, now())
        );
    }

    /// What the supervisor left as its last words, or what must have happened instead.
    fn last_words(&self, instead: &str) -> String {
        let log = std::fs::read_to_string(self.uplink.local.join("logs/supervise.log"));
        match log {
            Ok(text) if !text.trim().is_empty() => last_lines(&text, 3),
            _ => format!("{} {instead}", self.instance.name),
        }
    }

    fn start_overlay(&self) -> Result<Option<Child>> {
        self.overlay.map(Overlay::start).transpose()
    }
}

/// Asks the bubble to end and waits for it, as long as it may take.
async fn stop_bubble(sender: &mut Sender, receiver: &mut Receiver) {
    let order = Order::Stop {
        grace_seconds: GRACE_SECONDS,
    };
    // A bubble that has gone already needs no order.
    if sender.send(&order).await.is_ok() {
        await_end(receiver).await;
    }
}

async fn await_end(receiver: &mut Receiver) {
    let ended = async { while let Ok(Some(_)) = receiver.next::<Report>().await {} };
    // The caller kills what is left.
    let _ = tokio::time::timeout(END, ended).await;
}
