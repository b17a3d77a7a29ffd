//! Running: every container runs, or is on its way to run again, or has ended for good.

use super::{Plan, Progress, Step, View, drive, drive_ephemeral, lost_sandbox};
use crate::pod::restart::{self, Role};
use crate::pod::state::State;

pub(super) fn plan(view: &View<'_>, plan: &mut Plan) {
    if !view.sandbox_ready() {
        lost_sandbox(view, plan);
        return;
    }
    for container in view.spec.init_containers.iter().flatten() {
        if restart::init_role(container) == Role::Sidecar {
            drive(view, container, Role::Sidecar, plan);
        }
    }
    let mut over = true;
    for container in &view.spec.containers {
        over &= drive(view, container, Role::App, plan) == Progress::Done;
    }
    drive_ephemeral(view, plan);
    if over {
        plan.step(Step::Move(State::Finishing));
    }
}
