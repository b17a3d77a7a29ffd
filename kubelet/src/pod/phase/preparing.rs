//! Preparing: volumes, sandbox and the first images, side by side.

use super::{Plan, Step, View, pull, roles};
use crate::pod::live::Op;
use crate::pod::restart::Role;
use crate::pod::state::State;

pub(super) fn plan(view: &View<'_>, plan: &mut Plan) {
    // What is left of a lost or failed sandbox goes first.
    let leftover =
        view.record.sandbox.as_ref().is_some_and(|s| !s.ready) && !view.live.sandbox.is_busy();
    if leftover {
        if view.live.removing.is_due(view.now) {
            plan.step(Step::RemoveSandbox);
        } else if let Some(failure) = view.live.removing.failure() {
            plan.wake_at(failure.retry_at);
        }
        return;
    }
    if view.live.volumes.is_due(view.now) {
        plan.step(Step::MountVolumes);
    }
    if view.record.sandbox.is_none() && view.live.sandbox.is_due(view.now) {
        plan.step(Step::CreateSandbox);
    }
    for failure in [view.live.volumes.failure(), view.live.sandbox.failure()]
        .into_iter()
        .flatten()
    {
        plan.wake_at(failure.retry_at);
    }
    prefetch(view, plan);
    if view.sandbox_ready() && matches!(view.live.volumes, Op::Done(_)) {
        plan.step(Step::Move(State::Initializing));
    }
}

/// The images needed first: the first init container's, or all of a pod without any.
fn prefetch(view: &View<'_>, plan: &mut Plan) {
    let has_init = view.spec.init_containers.iter().flatten().next().is_some();
    let first = if has_init { 1 } else { usize::MAX };
    for (container, role) in roles(view.spec).take(first) {
        let fresh = view.record_of(&container).is_none() || role == Role::Init;
        let pulled = view
            .live
            .containers
            .get(&container.name)
            .is_some_and(|live| live.image.done().is_some() || live.image.is_busy());
        if fresh && !pulled {
            pull(view, &container, plan);
        }
    }
}
