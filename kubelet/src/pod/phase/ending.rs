//! Finishing and Terminating: containers stop, sidecars last and in reverse order; then the sandbox
//! goes, then its volumes, and for a pod that was deleted all its files and its API object.

use super::{Deletion, Plan, Step, View, roles};
use crate::pod::live::Op;
use crate::pod::restart::Role;
use crate::pod::state::State;

pub(super) fn finishing(view: &View<'_>, plan: &mut Plan) {
    let own = view.spec.termination_grace_period_seconds.unwrap_or(30);
    let grace = match &view.record.order {
        Some(order) => own.min(order.grace).max(1),
        None => own,
    };
    if stop_all(view, grace, plan) && remove_sandbox(view, plan) {
        plan.step(Step::Move(State::Finished));
    }
}

/// Its object and its logs stay, for as long as somebody wants to see them; the node's disk it has no claim to.
pub(super) fn finished(view: &View<'_>, plan: &mut Plan) {
    once(&view.live.emptying, Step::RemoveVolumes, view, plan);
}

pub(super) fn terminating(view: &View<'_>, plan: &mut Plan) {
    let deletion = view.deletion.unwrap_or(Deletion::Gone {
        grace: view.record.grace_seconds,
    });
    // Even a forced deletion gives a moment to end, as the stock kubelet does.
    let grace = deletion.grace().max(1);
    let is_emptying = view.live.emptying.is_busy();
    if !stop_all(view, grace, plan) || !remove_sandbox(view, plan) || is_emptying {
        return;
    }
    match deletion {
        Deletion::Asked { .. } => once(&view.live.deleting, Step::DeleteFromApi, view, plan),
        Deletion::Gone { .. } => {
            if view.live.clearing.done().is_some() {
                plan.step(Step::Move(State::Removed));
            } else {
                once(&view.live.clearing, Step::RemoveFiles, view, plan);
            }
        }
    }
}

fn once(op: &Op<()>, step: Step, view: &View<'_>, plan: &mut Plan) {
    if op.is_due(view.now) {
        plan.step(step);
    } else if let Some(failure) = op.failure() {
        plan.wake_at(failure.retry_at);
    }
}

/// True when no container runs or is being made.
fn stop_all(view: &View<'_>, grace: i64, plan: &mut Plan) -> bool {
    let of_role = |sidecar: bool| -> Vec<String> {
        roles(view.spec)
            .filter(|(container, role)| {
                (*role == Role::Sidecar) == sidecar && view.is_running(container)
            })
            .map(|(container, _)| container.name.clone())
            .collect()
    };
    let others = of_role(false);
    let last_sidecar = of_role(true).pop();
    let others_are_done = others.is_empty();
    let now_due: Vec<String> = if others_are_done {
        last_sidecar.into_iter().collect()
    } else {
        others
    };
    // Sidecars get what the others have left of the pod's grace.
    let spent = match view.live.ending_since {
        Some(since) if others_are_done => view.now.duration_since(since).as_secs(),
        _ => 0,
    };
    let grace = (grace - spent).max(1);
    for container in &now_due {
        let live = view.live.containers.get(container);
        if live.is_none_or(|live| live.stopping.is_none()) {
            plan.step(Step::StopContainer {
                container: container.clone(),
                grace,
                message: None,
            });
        }
    }
    now_due.is_empty() && !view.live.is_making()
}

/// True when there is no sandbox any more.
fn remove_sandbox(view: &View<'_>, plan: &mut Plan) -> bool {
    if view.record.sandbox.is_none() && !view.live.removing.is_busy() {
        return true;
    }
    once(&view.live.removing, Step::RemoveSandbox, view, plan);
    false
}
