//! Initializing: init containers one after the other; sidecars stay running beside them.

use super::{Plan, Progress, Step, View, drive, drive_ephemeral, lost_sandbox};
use crate::pod::restart::{self, Role};
use crate::pod::state::State;

pub(super) fn plan(view: &View<'_>, plan: &mut Plan) {
    if !view.sandbox_ready() {
        lost_sandbox(view, plan);
        return;
    }
    drive_ephemeral(view, plan);
    for container in view.spec.init_containers.iter().flatten() {
        let role = restart::init_role(container);
        match drive(view, container, role, plan) {
            Progress::Pending => return,
            Progress::Running if role == Role::Sidecar => {
                let live = view.live.containers.get(&container.name);
                if !live.is_some_and(|live| live.started) {
                    return;
                }
            }
            Progress::Running => return,
            Progress::Done => {
                let exit = view.record_of(container).and_then(|record| record.exit());
                if exit.is_some_and(|exit| exit.code != 0) {
                    plan.step(Step::Move(State::Finishing));
                    return;
                }
            }
        }
    }
    plan.step(Step::Move(State::Running));
}
