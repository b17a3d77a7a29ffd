//! One container's status.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Inputs;
use crate::pod::live::LiveContainer;
use crate::pod::phase::PULL_ERROR_SHOWN;
use crate::pod::record::{ContainerRecord, Exit, Instance};
use crate::pod::restart::{self, Next, Role};
use crate::text;

/// Prefix of container ids, naming the runtime.
pub const RUNTIME: &str = "hpk://";

/// The status of `container`.
pub fn status(inputs: &Inputs<'_>, container: &Container, role: Role) -> ContainerStatus {
    let none = ContainerRecord::default();
    let record = inputs
        .record
        .containers
        .get(&container.name)
        .unwrap_or(&none);
    let idle = LiveContainer::default();
    let live = inputs.live.containers.get(&container.name).unwrap_or(&idle);
    let current = record.current.as_ref();
    let shown = current.filter(|instance| instance.started_at.is_some() || instance.exit.is_some());
    let (state, last) = states(inputs, container, role, record, live);
    let running = record.is_running();
    let succeeded = state
        .terminated
        .as_ref()
        .is_some_and(|ended| ended.exit_code == 0);
    let ready = match role {
        Role::Init => succeeded,
        Role::Sidecar | Role::App => running && live.ready,
        Role::Ephemeral => false,
    };
    let attempts = shown.or(record.previous.as_ref());
    ContainerStatus {
        name: container.name.clone(),
        image: shown.map_or_else(
            || container.image.clone().unwrap_or_default(),
            |instance| instance.image.clone(),
        ),
        image_id: shown
            .map(|instance| instance.image_id.clone())
            .unwrap_or_default(),
        container_id: shown
            .filter(|instance| !instance.id.is_empty())
            .map(|instance| format!("{RUNTIME}{}", instance.id)),
        restart_count: attempts.map_or(0, |instance| {
            i32::try_from(instance.attempt).unwrap_or(i32::MAX)
        }),
        ready,
        allocated_resources: container.resources.clone().and_then(|r| r.requests),
        resources: Some(resources(container, current)),
        started: (role != Role::Ephemeral).then_some(running && live.started),
        state: Some(state),
        last_state: last,
        ..ContainerStatus::default()
    }
}

/// What the run has been given; what the next would be, where none runs.
fn resources(container: &Container, current: Option<&Instance>) -> ResourceRequirements {
    let given = current
        .filter(|instance| instance.is_running())
        .and_then(|instance| instance.resources.as_ref());
    given
        .or(container.resources.as_ref())
        .cloned()
        .unwrap_or_default()
}

fn states(
    inputs: &Inputs<'_>,
    container: &Container,
    role: Role,
    record: &ContainerRecord,
    live: &LiveContainer,
) -> (ContainerState, Option<ContainerState>) {
    let previous = record
        .previous
        .as_ref()
        .and_then(|instance| Some(ended(instance, instance.exit.as_ref()?)));
    let Some(current) = &record.current else {
        let waiting = waiting(inputs, live, None);
        return (waiting, previous);
    };
    match &current.exit {
        None if current.started_at.is_some() => {
            let state = ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: current.started_at.map(Time),
                }),
                ..ContainerState::default()
            };
            (state, previous)
        }
        // Being created: what ran before is the last state.
        None => (waiting(inputs, live, None), previous),
        Some(exit) => {
            let policy = restart::policy(inputs.spec, container, role, Some(record));
            let next = restart::next(record, policy, inputs.now);
            let stays = inputs.record.state.is_over() || next == Next::Done;
            if stays {
                (ended(current, exit), previous)
            } else {
                let waiting = waiting(inputs, live, Some((container, exit, next)));
                (waiting, Some(ended(current, exit)))
            }
        }
    }
}

fn ended(instance: &Instance, exit: &Exit) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: (!instance.id.is_empty()).then(|| format!("{RUNTIME}{}", instance.id)),
            exit_code: exit.code,
            reason: Some(exit.reason.clone()).filter(|reason| !reason.is_empty()),
            message: Some(exit.message.clone()).filter(|message| !message.is_empty()),
            started_at: instance.started_at.map(Time),
            finished_at: Some(Time(exit.at)),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

/// Why the container doesn't run: what failed last, else what it waits for.
fn waiting(
    inputs: &Inputs<'_>,
    live: &LiveContainer,
    ended: Option<(&Container, &Exit, Next)>,
) -> ContainerState {
    let (reason, message) = waiting_reason(inputs, live, ended);
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason),
            message,
        }),
        ..ContainerState::default()
    }
}

fn waiting_reason(
    inputs: &Inputs<'_>,
    live: &LiveContainer,
    ended: Option<(&Container, &Exit, Next)>,
) -> (String, Option<String>) {
    if let Some(failure) = live.image.failure() {
        let is_shown = failure.since + PULL_ERROR_SHOWN > inputs.now;
        if is_shown || failure.reason != "ErrImagePull" {
            return (failure.reason.to_owned(), Some(failure.message.clone()));
        }
        let message = format!(
            "Back-off pulling image: {}: {}",
            failure.reason, failure.message
        );
        return ("ImagePullBackOff".to_owned(), Some(message));
    }
    if let Some(failure) = &live.config_error {
        return (failure.reason.to_owned(), Some(failure.message.clone()));
    }
    if let Some((container, exit, next)) = ended {
        if let Next::Wait { seconds, .. } = next {
            let meta = &inputs.pod.metadata;
            let message = format!(
                "back-off {} restarting failed container={} pod={}_{}({})",
                text::go_duration(Duration::from_secs(seconds.into())),
                container.name,
                meta.name.as_deref().unwrap_or_default(),
                meta.namespace.as_deref().unwrap_or_default(),
                meta.uid.as_deref().unwrap_or_default()
            );
            return ("CrashLoopBackOff".to_owned(), Some(message));
        }
        if exit.reason == "StartError" {
            return ("RunContainerError".to_owned(), Some(exit.message.clone()));
        }
    }
    let has_init = inputs
        .spec
        .init_containers
        .iter()
        .flatten()
        .next()
        .is_some();
    let reason = if has_init {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    (reason.to_owned(), None)
}
