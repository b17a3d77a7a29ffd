//! What is to be done next in each state of a pod's life. Pure: `plan` looks, the worker acts.
//!
//! - `preparing`: volumes, sandbox, first images
//! - `initializing`: init containers in order, sidecars beside them
//! - `running`: the pod's containers, their restarts
//! - `resizing`: CPU and memory changed while it runs
//! - `ending`: finishing and terminating

mod ending;
mod initializing;
mod preparing;
mod resizing;
mod running;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::ephemeral;
use super::live::Live;
use super::record::{ContainerRecord, PodRecord, Verdict};
use super::restart::{self, Next, Policy, Role};
use super::state::State;

/// One thing for the worker to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Move(State),
    /// The pod as a whole has failed, and this is why.
    Fail(Verdict),
    MountVolumes,
    CreateSandbox,
    /// The sandbox died under us.
    ReplaceSandbox,
    PullImage {
        container: String,
    },
    StartContainer {
        container: String,
    },
    /// Let it end within `grace` seconds, then kill it.
    StopContainer {
        container: String,
        grace: i64,
        message: Option<String>,
    },
    /// The resources asked for are the pod's from now on.
    Allocate,
    /// They can't be had, or not now.
    HoldResize(Verdict),
    /// They are no longer asked for.
    DropResize,
    /// Gives a running container what was promised.
    ResizeContainer {
        container: String,
    },
    /// All containers have it.
    CompleteResize,
    /// Its image was changed in the spec: it ends within `grace` seconds and runs again.
    ReplaceContainer {
        container: String,
        grace: i64,
    },
    RemoveSandbox,
    RemoveVolumes,
    RemoveFiles,
    DeleteFromApi,
}

/// What to do now, and when to look again if nothing happens before.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
    }
}

/// Why the pod is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// It has a deletionTimestamp: this many seconds for its containers.
    Asked { grace: i64 },
    /// The API has it no more: nobody waits for us.
    Gone { grace: i64 },
}

impl Deletion {
    pub fn grace(self) -> i64 {
        match self {
            Deletion::Asked { grace } | Deletion::Gone { grace } => grace,
        }
    }
}

/// Everything a plan is made from.
#[derive(Debug)]
pub struct View<'a> {
    pub spec: &'a PodSpec,
    pub record: &'a PodRecord,
    pub live: &'a Live,
    pub deletion: Option<Deletion>,
    /// Admission's answer, needed while Pending.
    pub refused: Option<Verdict>,
    /// Whether other resources than the promised are asked for, and can be had.
    pub resize: Option<Result<(), Verdict>>,
    pub now: Timestamp,
}

/// The next steps.
pub fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let state = view.record.state;
    if view.deletion.is_some() && !matches!(state, State::Terminating | State::Removed) {
        plan.step(Step::Move(State::Terminating));
        return plan;
    }
    if view.record.over.is_some() && !state.is_over() {
        plan.step(Step::Move(match state {
            State::Pending => State::Finished,
            _ => State::Finishing,
        }));
        return plan;
    }
    if let Some(order) = &view.record.order
        && matches!(
            state,
            State::Pending | State::Preparing | State::Initializing | State::Running
        )
    {
        plan.step(Step::Fail(order.verdict.clone()));
        plan.step(Step::Move(match state {
            State::Pending => State::Rejected,
            _ => State::Finishing,
        }));
        return plan;
    }
    if matches!(
        state,
        State::Preparing | State::Initializing | State::Running
    ) && is_past_deadline(view, &mut plan)
    {
        plan.step(Step::Fail(Verdict {
            reason: "DeadlineExceeded".to_owned(),
            message: "Pod was active on the node longer than the specified deadline".to_owned(),
        }));
        plan.step(Step::Move(State::Finishing));
        return plan;
    }
    if matches!(state, State::Initializing | State::Running) {
        resizing::plan(view, &mut plan);
        if !plan.steps.is_empty() {
            return plan;
        }
    }
    match state {
        State::Pending => pending(view, &mut plan),
        State::Preparing => preparing::plan(view, &mut plan),
        State::Initializing => initializing::plan(view, &mut plan),
        State::Running => running::plan(view, &mut plan),
        State::Finishing => ending::finishing(view, &mut plan),
        State::Terminating => ending::terminating(view, &mut plan),
        State::Finished => ending::finished(view, &mut plan),
        State::Rejected | State::Removed => {}
    }
    plan
}

fn pending(view: &View<'_>, plan: &mut Plan) {
    if let Some(verdict) = &view.refused {
        plan.step(Step::Fail(verdict.clone()));
        plan.step(Step::Move(State::Rejected));
    } else {
        plan.step(Step::Move(State::Preparing));
    }
}

fn is_past_deadline(view: &View<'_>, plan: &mut Plan) -> bool {
    let Some(seconds) = view.spec.active_deadline_seconds else {
        return false;
    };
    let deadline = view
        .record
        .start_time
        .checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX);
    if view.now >= deadline {
        return true;
    }
    plan.wake_at(deadline);
    false
}

/// The containers of the pod with their roles: init containers first, ephemeral ones last.
pub fn roles(spec: &PodSpec) -> impl Iterator<Item = (Cow<'_, Container>, Role)> {
    let init = spec.init_containers.iter().flatten();
    let init = init.map(|container| (Cow::Borrowed(container), restart::init_role(container)));
    let apps = spec.containers.iter();
    let apps = apps.map(|container| (Cow::Borrowed(container), Role::App));
    init.chain(apps)
        .chain(ephemeral_containers(spec).map(|container| (Cow::Owned(container), Role::Ephemeral)))
}

fn ephemeral_containers(spec: &PodSpec) -> impl Iterator<Item = Container> {
    let all = spec.ephemeral_containers.iter().flatten();
    all.map(ephemeral::as_container)
}

impl View<'_> {
    fn record_of(&self, container: &Container) -> Option<&ContainerRecord> {
        self.record.containers.get(&container.name)
    }

    fn is_running(&self, container: &Container) -> bool {
        self.record_of(container)
            .is_some_and(ContainerRecord::is_running)
    }

    fn is_starting(&self, container: &Container) -> bool {
        let live = self.live.containers.get(&container.name);
        live.is_some_and(|live| live.starting)
    }

    /// The last run is of another image than the spec names now.
    fn is_outdated(&self, container: &Container) -> bool {
        let current = self.record_of(container).and_then(|r| r.current.as_ref());
        let runs = current.map(|run| &run.image);
        runs.is_some() && container.image.is_some() && runs != container.image.as_ref()
    }

    fn is_replaced(&self, container: &Container) -> bool {
        let current = self.record_of(container).and_then(|r| r.current.as_ref());
        current.is_some_and(|run| run.replaced)
    }

    fn policy(&self, container: &Container, role: Role) -> Policy {
        restart::policy(self.spec, container, role, self.record_of(container))
    }

    /// Whether the sandbox is there to be used.
    fn sandbox_ready(&self) -> bool {
        self.record
            .sandbox
            .as_ref()
            .is_some_and(|sandbox| sandbox.ready)
    }

    /// The last run was in the present sandbox.
    fn ran_here(&self, container: &Container) -> bool {
        let current = self.record_of(container).and_then(|r| r.current.as_ref());
        current.is_some_and(|instance| instance.sandbox == self.record.sandbox_attempt)
    }
}

/// Whether a container that should run does, will, or never will again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Running,
    /// On its way: image, start, back-off.
    Pending,
    Done,
}

/// Takes a container one step towards running: pull, start, or wait for the back-off.
fn drive(view: &View<'_>, container: &Container, role: Role, plan: &mut Plan) -> Progress {
    let outdated = matches!(role, Role::App | Role::Sidecar) && view.is_outdated(container);
    if view.is_running(container) {
        if outdated && !view.is_replaced(container) {
            replace(view, container, plan);
        }
        return Progress::Running;
    }
    if view.is_starting(container) {
        return Progress::Pending;
    }
    if let Some(record) = view.record_of(container) {
        match restart::next(record, view.policy(container, role), view.now) {
            Next::Start => {}
            _ if view.is_replaced(container) => {}
            // The wait was for the other image.
            Next::Wait { .. } if outdated => {}
            Next::Wait { until, .. } => {
                plan.wake_at(until);
                return Progress::Pending;
            }
            // An init container's work was done in a sandbox that is gone: again.
            Next::Done if role == Role::Init && !view.ran_here(container) => {}
            Next::Done => return Progress::Done,
        }
    }
    start(view, container, plan);
    Progress::Pending
}

/// Takes every ephemeral container on its way; no other container waits for one.
fn drive_ephemeral(view: &View<'_>, plan: &mut Plan) {
    for container in ephemeral_containers(view.spec) {
        drive(view, &container, Role::Ephemeral, plan);
    }
}

/// Ends a container whose spec names another image, once the spec has settled.
fn replace(view: &View<'_>, container: &Container, plan: &mut Plan) {
    let live = view.live.containers.get(&container.name);
    let settled = live
        .and_then(|live| live.image_changed)
        .map(|changed| changed + SETTLE)
        .filter(|settled| *settled > view.now);
    match settled {
        Some(settled) => plan.wake_at(settled),
        None => plan.step(Step::ReplaceContainer {
            container: container.name.clone(),
            grace: view.spec.termination_grace_period_seconds.unwrap_or(30),
        }),
    }
}

/// How long a changed image stands before its container is replaced: changes that follow each other
/// cost one restart, and who writes a status right after isn't met by ours. The stock kubelet, too,
/// shows a replaced container's end only a second later (its PLEG looks once a second).
const SETTLE: SignedDuration = SignedDuration::from_secs(1);

/// Pulls the image, then starts the container if nothing else of the pod is being started.
fn start(view: &View<'_>, container: &Container, plan: &mut Plan) {
    let live = view.live.containers.get(&container.name);
    if let Some(failure) = live.and_then(|live| live.config_error.as_ref())
        && failure.retry_at > view.now
    {
        plan.wake_at(failure.retry_at);
        return;
    }
    let pulled = live.is_some_and(|live| live.image.done().is_some());
    if !pulled {
        pull(view, container, plan);
        return;
    }
    // After the kubelet's restart the volumes have to be found again.
    if view.live.volumes.done().is_none() {
        if view.live.volumes.is_due(view.now) && !plan.steps.contains(&Step::MountVolumes) {
            plan.step(Step::MountVolumes);
        } else if let Some(failure) = view.live.volumes.failure() {
            plan.wake_at(failure.retry_at);
        }
        return;
    }
    let others_start = view.live.containers.values().any(|live| live.starting);
    let planned = plan
        .steps
        .iter()
        .any(|step| matches!(step, Step::StartContainer { .. }));
    if !others_start && !planned {
        plan.step(Step::StartContainer {
            container: container.name.clone(),
        });
    }
}

/// Pulls the image if that is due; looks again when a back-off ends, or is to be shown as such.
fn pull(view: &View<'_>, container: &Container, plan: &mut Plan) {
    let idle = super::live::LiveContainer::default();
    let live = view.live.containers.get(&container.name).unwrap_or(&idle);
    if live.image.is_due(view.now) {
        plan.step(Step::PullImage {
            container: container.name.clone(),
        });
    } else if let Some(failure) = live.image.failure() {
        plan.wake_at(failure.retry_at);
        let shown = failure.since + PULL_ERROR_SHOWN;
        if shown > view.now {
            plan.wake_at(shown);
        }
    }
}

/// How long ErrImagePull is shown before ImagePullBackOff is.
pub const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_millis(1500);

/// The sandbox is gone though it should be there: a new one, unless nothing may run again.
fn lost_sandbox(view: &View<'_>, plan: &mut Plan) {
    let started = view.record.containers.values().any(|c| c.current.is_some());
    if Policy::of_pod(view.spec) == Policy::Never && started {
        plan.step(Step::Move(State::Finishing));
    } else {
        plan.step(Step::ReplaceSandbox);
        plan.step(Step::Move(State::Preparing));
    }
}
