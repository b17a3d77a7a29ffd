//! The pod's conditions. Source: pkg/kubelet/status/generate.go.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Inputs, Phase};
use crate::pod::record::ResizeRecord;
use crate::pod::restart::{Role, init_role};

/// Resources are asked for that the pod hasn't been promised.
pub const RESIZE_PENDING: &str = "PodResizePending";
/// Containers are being given what was promised.
pub const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

/// Conditions that this kubelet decides.
pub const OURS: &[&str] = &[
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    RESIZE_PENDING,
    RESIZE_IN_PROGRESS,
];

/// Conditions that it sets, and others too.
pub const SHARED: &[&str] = &["PodScheduled", "DisruptionTarget"];

/// A condition before its times are known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Draft {
    kind: &'static str,
    status: bool,
    reason: Option<String>,
    message: Option<String>,
}

fn good(kind: &'static str) -> Draft {
    Draft {
        kind,
        status: true,
        reason: None,
        message: None,
    }
}

fn bad(kind: &'static str, reason: &'static str, message: Option<String>) -> Draft {
    Draft {
        kind,
        status: false,
        reason: Some(reason.to_owned()),
        message,
    }
}

/// Ours in the order of the stock kubelet, then those that others have set.
pub fn compute(
    inputs: &Inputs<'_>,
    phase: Phase,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Vec<PodCondition> {
    let old = inputs
        .pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let mut drafts = drafts(inputs, phase, init, apps, &old);
    if !old
        .iter()
        .any(|condition| condition.type_ == "PodScheduled")
    {
        drafts.push(good("PodScheduled"));
    }
    drafts.extend(resize(inputs));
    drafts.extend(disruption(inputs));
    let mut conditions: Vec<PodCondition> = drafts
        .into_iter()
        .map(|draft| with_times(inputs, draft, &old))
        .collect();
    if let Some(generation) = inputs.record.resize.under_way
        && let Some(condition) = conditions
            .iter_mut()
            .find(|c| c.type_ == RESIZE_IN_PROGRESS)
    {
        condition.observed_generation = Some(generation);
    }
    let others: Vec<PodCondition> = old
        .into_iter()
        .filter(|other| !conditions.iter().any(|ours| ours.type_ == other.type_))
        // There only as long as they hold.
        .filter(|other| ![RESIZE_PENDING, RESIZE_IN_PROGRESS].contains(&other.type_.as_str()))
        .collect();
    conditions.extend(others);
    conditions
}

fn drafts(
    inputs: &Inputs<'_>,
    phase: Phase,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
    old: &[PodCondition],
) -> Vec<Draft> {
    let sandbox = inputs.record.sandbox.as_ref().is_some_and(|s| s.ready);
    let to_start = if sandbox {
        good("PodReadyToStartContainers")
    } else {
        Draft {
            status: false,
            ..good("PodReadyToStartContainers")
        }
    };
    let initialized = initialized(inputs, phase, init, apps);
    let containers = containers_ready(inputs, phase, init, apps);
    let mut ready = Draft {
        kind: "Ready",
        ..containers.clone()
    };
    let gates = inputs.spec.readiness_gates.iter().flatten();
    let closed: Vec<&str> = gates
        .filter(|gate| {
            !old.iter()
                .any(|c| c.type_ == gate.condition_type && c.status == "True")
        })
        .map(|gate| gate.condition_type.as_str())
        .collect();
    if ready.status && !closed.is_empty() {
        let message = format!("the status of pod readiness gate {closed:?} is not \"True\"");
        ready = bad("Ready", "ReadinessGatesNotReady", Some(message));
    }
    vec![to_start, initialized, ready, containers]
}

fn initialized(
    inputs: &Inputs<'_>,
    phase: Phase,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Draft {
    let kind = "Initialized";
    if phase == Phase::Succeeded {
        return Draft {
            reason: Some("PodCompleted".to_owned()),
            ..good(kind)
        };
    }
    let specs = inputs.spec.init_containers.as_deref().unwrap_or_default();
    let incomplete: Vec<&str> = specs
        .iter()
        .zip(init)
        .filter(|(container, status)| match init_role(container) {
            Role::Sidecar => status.started != Some(true) && !super::any_started(apps),
            _ => !status.ready && !super::any_started(apps),
        })
        .map(|(container, _)| container.name.as_str())
        .collect();
    if incomplete.is_empty() {
        good(kind)
    } else {
        let message = format!(
            "containers with incomplete status: [{}]",
            incomplete.join(" ")
        );
        bad(kind, "ContainersNotInitialized", Some(message))
    }
}

/// Sidecars count as the pod's own containers do.
fn containers_ready(
    inputs: &Inputs<'_>,
    phase: Phase,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Draft {
    let kind = "ContainersReady";
    match phase {
        Phase::Succeeded => return bad(kind, "PodCompleted", None),
        Phase::Failed => return bad(kind, "PodFailed", None),
        Phase::Pending | Phase::Running => {}
    }
    let specs = inputs.spec.init_containers.as_deref().unwrap_or_default();
    let sidecars = specs
        .iter()
        .zip(init)
        .filter(|(container, _)| init_role(container) == Role::Sidecar)
        .map(|(_, status)| status);
    let unready: Vec<&str> = sidecars
        .chain(apps)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    if unready.is_empty() {
        good(kind)
    } else {
        let message = format!("containers with unready status: [{}]", unready.join(" "));
        bad(kind, "ContainersNotReady", Some(message))
    }
}

/// Source: KEP-3329; the pod isn't to blame, so that a Job may overlook its failure.
fn disruption(inputs: &Inputs<'_>) -> Option<Draft> {
    let order = inputs.record.order.as_ref()?;
    Some(Draft {
        reason: Some("TerminationByKubelet".to_owned()),
        message: Some(order.verdict.message.clone()),
        ..good("DisruptionTarget")
    })
}

/// Source: KEP-1287, "Resize Status".
fn resize(inputs: &Inputs<'_>) -> Vec<Draft> {
    let ResizeRecord { held, under_way } = &inputs.record.resize;
    let mut drafts = Vec::new();
    if let Some(verdict) = held {
        drafts.push(Draft {
            reason: Some(verdict.reason.clone()),
            message: Some(verdict.message.clone()),
            ..good(RESIZE_PENDING)
        });
    }
    if under_way.is_some() {
        let live = inputs.live;
        let containers = live
            .containers
            .values()
            .map(|container| &container.resizing);
        let failure = containers
            .chain([&live.resizing])
            .find_map(|resizing| resizing.failure());
        drafts.push(Draft {
            reason: failure.map(|failure| failure.reason.to_owned()),
            message: failure.map(|failure| failure.message.clone()),
            ..good(RESIZE_IN_PROGRESS)
        });
    }
    drafts
}

fn with_times(inputs: &Inputs<'_>, draft: Draft, old: &[PodCondition]) -> PodCondition {
    let status = if draft.status { "True" } else { "False" };
    let same = old
        .iter()
        .find(|condition| condition.type_ == draft.kind && condition.status == status);
    let since = same.and_then(|condition| condition.last_transition_time.clone());
    PodCondition {
        type_: draft.kind.to_owned(),
        status: status.to_owned(),
        reason: draft.reason,
        message: draft.message,
        last_transition_time: Some(since.unwrap_or(Time(inputs.now))),
        last_probe_time: None,
        observed_generation: inputs.pod.metadata.generation,
    }
}
