//! Ending one container: preStop hook, SIGTERM, and when its time is over SIGKILL.

use std::sync::Arc;
use std::time::Duration;

use hpk_images::process_defaults::signal_number;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::restart::Role;
use crate::agent::Agent;
use crate::events;
use crate::exec::Target;
use crate::{hooks, text};

/// What ends a container that asks for nothing else, or for nonsense.
const SIGTERM: u32 = 15;

/// At least this much is left to the program after its preStop hook (as the stock kubelet).
const AFTER_HOOK: SignedDuration = SignedDuration::from_secs(2);

/// Whom to end, and how.
#[derive(Debug)]
pub struct Kill {
    pub agent: Arc<Agent>,
    pub pod: Arc<Pod>,
    pub container: Container,
    pub role: Role,
    pub target: Target,
    pub pod_ip: String,
    /// Signal the image or the pod asks to be stopped with.
    pub stop_signal: Option<String>,
    /// When it is killed; may move nearer.
    pub deadline: watch::Receiver<Timestamp>,
}

/// Ends the container. Returns once SIGKILL was sent and sent again; the exit itself is seen by
/// whoever waits for the container, who then drops this task.
pub async fn stop(mut kill: Kill) {
    run_hook(&kill).await;
    let asked = kill.stop_signal.as_deref().and_then(signal_number);
    let signal = asked.unwrap_or(SIGTERM);
    signal_container(&kill.target, signal, false).await;
    let started = Timestamp::now();
    loop {
        let deadline = *kill.deadline.borrow_and_update();
        let floor = started.checked_add(AFTER_HOOK).unwrap_or(deadline);
        // Only a hook may have eaten the time: without one the deadline stands as it is.
        let end = if has_hook(&kill.container) {
            deadline.max(floor)
        } else {
            deadline
        };
        let left = Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(left) => break,
            changed = kill.deadline.changed() => if changed.is_err() { break },
        }
    }
    loop {
        signal_container(&kill.target, 9, true).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        warn!(
            container = kill.target.id,
            "still there after SIGKILL; again"
        );
    }
}

fn has_hook(container: &Container) -> bool {
    let lifecycle = container.lifecycle.as_ref();
    lifecycle.is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
}

async fn run_hook(kill: &Kill) {
    let lifecycle = kill.container.lifecycle.as_ref();
    let Some(hook) = lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref()) else {
        return;
    };
    let mut deadline = kill.deadline.clone();
    let limit = async {
        loop {
            let end = *deadline.borrow_and_update();
            let left = Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default();
            tokio::select! {
                () = tokio::time::sleep(left) => return,
                changed = deadline.changed() => if changed.is_err() { return },
            }
        }
    };
    let work = hooks::run(&kill.target, &kill.container, &kill.pod_ip, hook);
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = limit => return,
    };
    if let Err(error) = outcome {
        debug!(
            container = kill.container.name,
            error = text::chain(&error),
            "preStop hook failed"
        );
        kill.agent.recorder.container(
            &kill.pod,
            &kill.container.name,
            kill.role,
            events::Kind::Warning,
            "FailedPreStopHook",
            "PreStopHook failed".to_owned(),
        );
    }
}

async fn signal_container(target: &Target, signal: u32, all: bool) {
    match target.shim.kill(&target.id, "", signal, all).await {
        Err(error) if error.is_not_found() || error.is_failed_precondition() => {}
        Err(error) => debug!(
            container = target.id,
            signal,
            error = text::chain(&error),
            "can't signal the container"
        ),
        Ok(()) => {}
    }
}
