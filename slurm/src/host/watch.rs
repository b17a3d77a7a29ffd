//! While the bubble runs: its reports, its helpers' lives, the signals and the standard input
//! that say stop; and the order in which it ends.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::helpers::{Ended, Helpers, Part, Plan, last_words, too_often};
use super::instance::Instance;
use crate::clock::{now, time_left};
use crate::cluster::Cluster;
use crate::link::{self, Order, Receiver, Report, Sender};

/// How long the bubble may take to speak first, and to end once told so. Slurm kills 30 s after
/// its own SIGTERM.
const FIRST_WORD: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(20);
/// What the pods get of it.
const GRACE_SECONDS: u64 = 8;

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

/// Returns when standard input ends; never where it is no pipe (a shell, /dev/null).
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

#[derive(Debug)]
pub struct Watch<'a> {
    pub cluster: &'a Cluster,
    pub node: &'a str,
    pub instance: &'a Instance,
    pub plan: &'a Plan,
}

impl Watch<'_> {
    /// Returns when the bubble has ended: Ok if it was asked to, else the cause.
    pub async fn run(&self, listener: UnixListener, stop: &mut StopSignals) -> Result<()> {
        let mut helpers = Helpers::new(self.plan);
        for part in [Part::Uplink, Part::ApiServerPort, Part::EtcdPort] {
            helpers.start(part).await?;
        }
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
                    Some(Report::Leased) => helpers.start(Part::Overlay).await?,
                    Some(report) => self.tell(&report),
                },
                Some(ended) = helpers.ended() => {
                    let Some(pause) = helpers.pause(ended.part) else {
                        stop_bubble(&mut sender, &mut receiver).await;
                        bail!("{}", too_often(&ended));
                    };
                    self.restart(&mut helpers, &ended, pause).await?;
                    if ended.part == Part::Uplink {
                        // A bubble that has gone is noticed by its end of the link.
                        let _ = sender.send(&Order::UplinkRestarted).await;
                    }
                },
                () = stop.wait() => {
                    stop_bubble(&mut sender, &mut receiver).await;
                    return Ok(());
                }
            }
        }
    }

    async fn restart(
        &self,
        helpers: &mut Helpers<'_>,
        ended: &Ended,
        pause: Duration,
    ) -> Result<()> {
        self.say(&format!("{}; it is started again", ended.how));
        tokio::time::sleep(pause).await;
        helpers.start(ended.part).await
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
        let words = last_words(&self.plan.logs.join("supervise.log"), 3);
        if words.is_empty() {
            return format!("{} {instead}", self.instance.name);
        }
        words
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
