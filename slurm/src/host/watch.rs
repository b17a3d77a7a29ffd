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
use crate::settings;

/// The bubble's first word may take this part of a step's time.
const FIRST_WORD: u32 = 4;
/// What the pods get when Slurm has sent its SIGTERM: it kills 30 s later.
const GRACE_SECONDS: u64 = 8;
/// What they get at most before the job's time is over, when the batch script alone was told.
const LONG_GRACE_SECONDS: u64 = 30;
/// What the bubble may take to end beside that.
const END: Duration = Duration::from_secs(12);

/// Who said stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// Slurm or the user told this process.
    Signalled,
    /// The batch script: it was told ahead of time, or it has gone.
    InputEnded,
}

/// Seconds for the pods. `left`: seconds until the job's end, if it has one. Only a batch script told by
/// `--signal=B:TERM@60` leaves so much; a cancelled job's end is far off, and comes in 30 s all the same.
fn grace(stopped: Stopped, left: Option<i64>) -> u64 {
    let beside = i64::try_from(END.as_secs()).unwrap_or(i64::MAX) + 3;
    match (stopped, left) {
        (Stopped::InputEnded, Some(left @ ..=90)) => u64::try_from(left - beside)
            .unwrap_or(0)
            .clamp(GRACE_SECONDS, LONG_GRACE_SECONDS),
        _ => GRACE_SECONDS,
    }
}

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

    async fn wait(&mut self) -> Stopped {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Stopped::Signalled,
            _ = self.interrupt.recv() => Stopped::Signalled,
            _ = &mut self.stdin => Stopped::InputEnded,
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
        let limit = settings::step_limit()? / FIRST_WORD;
        let stream = tokio::select! {
            stream = listener.accept() => stream.context("accepting the bubble's link")?.0,
            _ = stop.wait() => return Ok(()),
            () = tokio::time::sleep(limit) => {
                bail!("{}", self.last_words(&format!("has not begun in {} s", limit.as_secs())))
            }
        };
        let (mut receiver, mut sender) = link::split(stream);
        self.say(&format!("{} runs", self.instance.name));
        loop {
            tokio::select! {
                report = receiver.next::<Report>() => match report? {
                    None => bail!("{}", self.last_words("was killed from outside, or for want of memory")),
                    Some(Report::Failed { cause }) => {
                        // It ends by itself now.
                        await_end(&mut receiver, Duration::from_secs(GRACE_SECONDS) + END).await;
                        bail!("{cause}");
                    }
                    Some(Report::Leased) => helpers.start(Part::Overlay).await?,
                    Some(report) => self.tell(&report),
                },
                Some(ended) = helpers.ended() => {
                    let Some(pause) = helpers.pause(ended.part) else {
                        stop_bubble(&mut sender, &mut receiver, GRACE_SECONDS).await;
                        bail!("{}", too_often(&ended));
                    };
                    self.restart(&mut helpers, &ended, pause).await?;
                    if ended.part == Part::Uplink {
                        // A bubble that has gone is noticed by its end of the link.
                        let _ = sender.send(&Order::UplinkRestarted).await;
                    }
                },
                stopped = stop.wait() => {
                    let left = self.cluster.ends.map(|ends| ends - now());
                    stop_bubble(&mut sender, &mut receiver, grace(stopped, left)).await;
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
async fn stop_bubble(sender: &mut Sender, receiver: &mut Receiver, grace_seconds: u64) {
    let order = Order::Stop { grace_seconds };
    // A bubble that has gone already needs no order.
    if sender.send(&order).await.is_ok() {
        await_end(receiver, Duration::from_secs(grace_seconds) + END).await;
    }
}

async fn await_end(receiver: &mut Receiver, limit: Duration) {
    let ended = async { while let Ok(Some(_)) = receiver.next::<Report>().await {} };
    // The caller kills what is left.
    let _ = tokio::time::timeout(limit, ended).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_longer_when_the_batch_script_was_told_ahead_of_the_end() {
        assert_eq!(grace(Stopped::InputEnded, Some(60)), 30);
        assert_eq!(grace(Stopped::InputEnded, Some(30)), 15);
        assert_eq!(grace(Stopped::InputEnded, Some(2)), 8);
        // A cancelled job, and one whose step Slurm signals itself.
        assert_eq!(grace(Stopped::InputEnded, Some(3000)), 8);
        assert_eq!(grace(Stopped::InputEnded, None), 8);
        assert_eq!(grace(Stopped::Signalled, Some(60)), 8);
    }
}
