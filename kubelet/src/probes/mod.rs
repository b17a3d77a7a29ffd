//! Probes: is a container started, ready, alive?
//!
//! - here: the loop of one probe, and when its answers become news
//! - `check`: one try
//! - `tally`: how they ended, for Prometheus
//! - `http` (hooks use it too), `grpc`: one by HTTP, by gRPC

pub mod check;
mod grpc;
pub mod http;
pub mod tally;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::agent::Agent;
use crate::events;
use crate::exec::Target;
use crate::pod::restart::Role;
use check::Verdict;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }
}

/// What a probe found, once enough tries in a row said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    pub container: String,
    /// The run it is about.
    pub id: String,
    pub kind: Kind,
    pub success: bool,
}

/// The probes of one run; they end when this is dropped.
#[derive(Debug)]
pub struct Running {
    tasks: Vec<(Kind, JoinHandle<()>)>,
}

impl Running {
    /// For a container that ends: whether it's alive is no matter any more, whether it's ready is.
    pub fn keep_readiness(&mut self) {
        self.tasks.retain(|(kind, task)| {
            let kept = *kind == Kind::Readiness;
            if !kept {
                task.abort();
            }
            kept
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for (_, task) in &self.tasks {
            task.abort();
        }
    }
}

/// What probes ask, and of whom.
#[derive(Debug, Clone)]
pub struct Subject {
    pub agent: Arc<Agent>,
    pub pod: Arc<Pod>,
    pub container: Container,
    pub target: Target,
    pub pod_ip: String,
    pub role: Role,
    pub started_at: Timestamp,
}

/// Starts the container's probes; `started`: its startup probe needn't run any more.
pub fn start<T>(subject: &Subject, started: bool, sender: &mpsc::UnboundedSender<T>) -> Running
where
    T: From<News> + Send + 'static,
{
    let mut tasks = Vec::new();
    let container = &subject.container;
    let mut spawn = |kind: Kind, probe: &Option<Probe>| {
        if let Some(probe) = probe.clone() {
            let task = watch(subject.clone(), kind, probe, sender.clone());
            tasks.push((kind, tokio::spawn(task)));
        }
    };
    if container.startup_probe.is_some() && !started {
        // Until it has succeeded the others don't run: the worker starts them then.
        spawn(Kind::Startup, &container.startup_probe);
    } else {
        spawn(Kind::Readiness, &container.readiness_probe);
        spawn(Kind::Liveness, &container.liveness_probe);
    }
    Running { tasks }
}

/// Counts answers in a row; says when they amount to news. Pure.
#[derive(Debug)]
struct Counter {
    success_threshold: i32,
    failure_threshold: i32,
    last: Option<bool>,
    run: i32,
    told: Option<bool>,
}

impl Counter {
    fn new(probe: &Probe) -> Self {
        Self {
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            last: None,
            run: 0,
            told: None,
        }
    }

    /// The news, if this answer makes any.
    fn accept(&mut self, success: bool) -> Option<bool> {
        self.run = if self.last == Some(success) {
            self.run + 1
        } else {
            1
        };
        self.last = Some(success);
        let threshold = if success {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        if self.run < threshold || self.told == Some(success) {
            return None;
        }
        self.told = Some(success);
        Some(success)
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    let value = value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0);
    Duration::from_secs(value.unwrap_or(default))
}

async fn watch<T: From<News>>(
    subject: Subject,
    kind: Kind,
    probe: Probe,
    sender: mpsc::UnboundedSender<T>,
) {
    let delay = seconds(probe.initial_delay_seconds, 0);
    let ran = Timestamp::now().duration_since(subject.started_at);
    let ran = Duration::try_from(ran).unwrap_or_default();
    tokio::time::sleep(delay.saturating_sub(ran)).await;
    let limit = seconds(probe.timeout_seconds, 1);
    let mut ticker = tokio::time::interval(seconds(probe.period_seconds, 10));
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut counter = Counter::new(&probe);
    loop {
        ticker.tick().await;
        let verdict = check::probe(&subject, &probe, limit).await;
        let (agent, container) = (&subject.agent, &subject.container.name);
        agent.probes.count(&subject.pod, container, kind, &verdict);
        if let Some((reason, message)) = told(kind, &verdict) {
            subject.agent.recorder.container(
                &subject.pod,
                &subject.container.name,
                subject.role,
                events::Kind::Warning,
                reason,
                message,
            );
        }
        // What couldn't be asked says nothing of the container.
        if matches!(verdict, Verdict::Error(_)) {
            continue;
        }
        if let Some(success) = counter.accept(verdict.is_success()) {
            let news = News {
                container: subject.container.name.clone(),
                id: subject.target.id.clone(),
                kind,
                success,
            };
            if sender.send(news.into()).is_err() || kind == Kind::Startup && success {
                return;
            }
        }
    }
}

/// Reason and message of the event that a try is worth.
fn told(kind: Kind, verdict: &Verdict) -> Option<(&'static str, String)> {
    let kind = kind.as_str();
    match verdict {
        Verdict::Success => None,
        Verdict::Warning(output) => {
            Some(("ProbeWarning", format!("{kind} probe warning: {output}")))
        }
        Verdict::Failure(output) => Some(("Unhealthy", format!("{kind} probe failed: {output}"))),
        Verdict::Error(error) => Some((
            "Unhealthy",
            format!("{kind} probe errored and resulted in unknown state: {error}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_are_news_and_two_are_not() {
        let mut counter = Counter::new(&Probe::default());
        assert_eq!(counter.accept(false), None);
        assert_eq!(counter.accept(false), None);
        assert_eq!(counter.accept(true), Some(true));
        assert_eq!(counter.accept(false), None);
        assert_eq!(counter.accept(false), None);
        assert_eq!(counter.accept(false), Some(false));
        assert_eq!(counter.accept(false), None);
    }

    #[test]
    fn nothing_is_told_twice() {
        let mut counter = Counter::new(&Probe::default());
        assert_eq!(counter.accept(true), Some(true));
        assert_eq!(counter.accept(true), None);
    }
}
