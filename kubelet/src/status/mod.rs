//! The pod's status, made from what the worker knows. Pure.
//!
//! - `containers`: one container's status
//! - `conditions`: the pod's conditions
//! - `sync`: sending it, the latest first
//! - here: the phase, and all of it put together

pub mod conditions;
pub mod containers;
pub mod sync;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerStatus, HostIP, Pod, PodIP, PodSpec, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::pod::admission;
use crate::pod::live::Live;
use crate::pod::phase::roles;
use crate::pod::record::PodRecord;
use crate::pod::restart::{Policy, Role, init_role};
use crate::pod::state::State;
use crate::qos;
use crate::quantity::Quantity;

/// What a status is made from.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub spec: &'a PodSpec,
    pub record: &'a PodRecord,
    pub live: &'a Live,
    pub host_ips: &'a [String],
    pub now: Timestamp,
}

/// The pod's whole status. `pod.status` is the last known one: transition times are kept from it.
pub fn compute(inputs: &Inputs<'_>) -> PodStatus {
    let Inputs {
        pod, spec, record, ..
    } = inputs;
    let init: Vec<ContainerStatus> = spec
        .init_containers
        .iter()
        .flatten()
        .map(|container| containers::status(inputs, container, init_role(container)))
        .collect();
    let apps: Vec<ContainerStatus> = spec
        .containers
        .iter()
        .map(|container| containers::status(inputs, container, Role::App))
        .collect();
    let ephemeral: Vec<ContainerStatus> = roles(spec)
        .filter(|(_, role)| *role == Role::Ephemeral)
        .map(|(container, role)| containers::status(inputs, &container, role))
        .collect();
    let phase = match record.state {
        State::Rejected => Phase::Failed,
        _ if let Some(over) = record.over => over,
        _ if record.verdict.is_some() => Phase::Failed,
        _ => phase(spec, record, &init, &apps),
    };
    let old = pod.status.as_ref();
    let ips: Vec<String> = match &record.sandbox {
        Some(sandbox) if sandbox.ready => sandbox.ips.clone(),
        // A pod that has ended keeps showing the address it had.
        _ => old
            .and_then(|status| status.pod_ips.as_ref())
            .map(|ips| ips.iter().map(|ip| ip.ip.clone()).collect())
            .unwrap_or_default(),
    };
    let conditions = conditions::compute(inputs, phase, &init, &apps);
    let (reason, message) = match (&record.verdict, record.over.and(old)) {
        (_, Some(said)) => (said.reason.clone(), said.message.clone()),
        (Some(verdict), None) => (Some(verdict.reason.clone()), Some(verdict.message.clone())),
        (None, None) => (None, None),
    };
    let started = record.state != State::Pending;
    let whole = whole(spec);
    PodStatus {
        phase: Some(phase.as_str().to_owned()),
        conditions: Some(conditions),
        host_ip: inputs.host_ips.first().cloned(),
        host_ips: Some(
            inputs
                .host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.clone() })
                .collect(),
        ),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: started.then_some(Time(record.start_time)),
        qos_class: Some(
            old.and_then(|status| status.qos_class.clone())
                .unwrap_or_else(|| qos::class(spec).as_str().to_owned()),
        ),
        init_container_statuses: (!init.is_empty()).then_some(init),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        container_statuses: (record.state != State::Rejected).then_some(apps),
        reason,
        message,
        allocated_resources: whole.requests.clone(),
        resources: Some(whole),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// CPU, memory and the rest of the pod as a whole: as it asks for them, else what its containers ask
/// for in sum. Source: pkg/kubelet/kubelet_pods.go, getEffectiveAllocatedResources.
fn whole(spec: &PodSpec) -> ResourceRequirements {
    let fill = |map: &mut Option<BTreeMap<String, ApiQuantity>>,
                sum: BTreeMap<String, Quantity>| {
        for (name, quantity) in sum {
            let known = map.get_or_insert_default().entry(name);
            known.or_insert_with(|| quantity.to_api());
        }
    };
    let mut whole = spec.resources.clone().unwrap_or_default();
    fill(&mut whole.requests, admission::requests(spec));
    fill(&mut whole.limits, admission::limits(spec));
    whole
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }

    /// How the pod ended, if the API has it as over.
    pub fn end_of(pod: &Pod) -> Option<Self> {
        Self::end_in(pod.status.as_ref()?)
    }

    fn end_in(status: &PodStatus) -> Option<Self> {
        let phase = status.phase.as_deref()?;
        [Phase::Succeeded, Phase::Failed]
            .into_iter()
            .find(|end| end.as_str() == phase)
    }
}

/// The phase, by the rules of the stock kubelet (pkg/kubelet/kubelet_pods.go, getPhase).
fn phase(
    spec: &PodSpec,
    record: &PodRecord,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Phase {
    let init_specs = spec.init_containers.as_deref().unwrap_or_default();
    let policy = Policy::of_pod(spec);
    for (container, status) in init_specs.iter().zip(init) {
        if init_role(container) == Role::Sidecar {
            if status.started != Some(true) && !record.state.is_over() && !any_started(apps) {
                return Phase::Pending;
            }
            continue;
        }
        match terminated(status) {
            Some(0) => {}
            Some(_) if policy == Policy::Never => return Phase::Failed,
            _ if record.state.is_over() && !any_started(apps) && policy == Policy::Never => {
                return Phase::Failed;
            }
            _ if !any_started(apps) => return Phase::Pending,
            _ => {}
        }
    }
    let mut running = 0;
    let mut stopped = 0;
    let mut succeeded = 0;
    let mut waiting = 0;
    let mut restarting = 0;
    for status in apps {
        let state = status.state.as_ref();
        if state.is_some_and(|s| s.running.is_some()) {
            running += 1;
        } else if let Some(code) = terminated(status) {
            stopped += 1;
            succeeded += i32::from(code == 0);
        } else if status
            .last_state
            .as_ref()
            .is_some_and(|last| last.terminated.is_some())
        {
            stopped += 1;
            restarting += 1;
        } else {
            waiting += 1;
        }
    }
    // Containers that never got to run won't: the pod is over.
    let over = matches!(record.state, State::Finished)
        || (record.state == State::Terminating && record.sandbox.is_none());
    match () {
        () if over && running == 0 && succeeded == stopped && waiting == 0 => Phase::Succeeded,
        () if over && running == 0 && record.sandbox_attempt > 0 => Phase::Failed,
        () if waiting > 0 => Phase::Pending,
        () if running + restarting > 0 => Phase::Running,
        () if stopped > 0 && policy == Policy::Always => Phase::Running,
        () if stopped > 0 && stopped == succeeded => Phase::Succeeded,
        () if stopped > 0 && policy == Policy::Never => Phase::Failed,
        () if stopped > 0 => Phase::Running,
        () => Phase::Pending,
    }
}

fn any_started(statuses: &[ContainerStatus]) -> bool {
    statuses.iter().any(|status| {
        let running = status.state.as_ref().is_some_and(|s| s.running.is_some());
        let ended = terminated(status).is_some();
        let ran = status
            .last_state
            .as_ref()
            .is_some_and(|s| s.terminated.is_some());
        running || ended || ran
    })
}

pub(crate) fn terminated(status: &ContainerStatus) -> Option<i32> {
    let state = status.state.as_ref()?;
    Some(state.terminated.as_ref()?.exit_code)
}
