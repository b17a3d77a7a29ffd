//! Taking over what an earlier kubelet left running: shims are asked, containers go on.

use hpk_shim_client::{Shim, TaskStatus, read_address};
use k8s_openapi::jiff::Timestamp;
use tracing::{debug, info};

use super::Worker;
use crate::pod::record::{Instance, lost};
use crate::pod::sandbox;
use crate::pod::state::State;
use crate::text;

/// What became of a run while nobody looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Running,
    /// It ended, and the shim still knows how.
    Ended,
    /// Created, never started.
    Created,
    Nothing,
}

impl Worker {
    pub(super) async fn adopt(&mut self) {
        let Some(recorded) = self.record.sandbox.clone() else {
            self.settle_lost();
            return;
        };
        let address = match &recorded.address {
            Some(address) => Some(address.clone()),
            None => read_address(&recorded.bundle).unwrap_or_default(),
        };
        let shim = match address {
            Some(address) => Shim::connect(&address).await.ok(),
            None => None,
        };
        let alive = match &shim {
            Some(shim) => find(shim, &recorded.id).await == Found::Running,
            None => false,
        };
        self.shim = shim;
        if let Some(sandbox) = &mut self.record.sandbox {
            // One that was still being made is made anew.
            sandbox.ready &= alive;
        }
        if alive {
            self.wait_for_sandbox(&recorded.id);
        }
        info!(pod = self.record.name, alive, "adopted");
        let names: Vec<String> = self.record.containers.keys().cloned().collect();
        for name in names {
            self.adopt_container(&name).await;
        }
    }

    async fn adopt_container(&mut self, name: &str) {
        let record = self.record.container(name);
        let Some(current) = record.current.clone() else {
            return;
        };
        if current.exit.is_some() {
            return;
        }
        let found = match &self.shim {
            Some(shim) => find(shim, &current.id).await,
            None => Found::Nothing,
        };
        debug!(pod = self.record.name, container = name, ?found, "adopts");
        match found {
            Found::Running => self.resume(name, &current),
            // How it ended comes by the same way as if we had waited all the time.
            Found::Ended => self.wait_for(name, &current.id),
            Found::Created => {
                if let Some(shim) = &self.shim {
                    sandbox::end_container(shim, &current.id).await;
                }
                self.undo_start(name);
            }
            Found::Nothing if current.started_at.is_none() => self.undo_start(name),
            Found::Nothing => {
                if let Some(current) = &mut self.record.container(name).current {
                    current.exit = Some(lost(Timestamp::now()));
                }
            }
        }
    }

    /// A container that ran on without us: probes and waiting begin again.
    fn resume(&mut self, name: &str, current: &Instance) {
        if current.started_at.is_none()
            && let Some(current) = &mut self.record.container(name).current
        {
            current.started_at = Some(Timestamp::now());
        }
        let Some((spec, role)) = self.find(name) else {
            return;
        };
        let status = self.pod.status.as_ref();
        let known = status.and_then(|status| role.status(status, name));
        let was_started = known.and_then(|status| status.started) == Some(true);
        let was_ready = known.is_some_and(|status| status.ready);
        let live = self.live.container(name);
        live.started = was_started || spec.startup_probe.is_none();
        // Until its probe says otherwise it is as ready as it was: no flapping through a restart.
        live.ready = live.started && (was_ready || spec.readiness_probe.is_none());
        self.wait_for(name, &current.id);
        self.start_probes(name);
    }

    /// There is no sandbox: what was running then, isn't.
    fn settle_lost(&mut self) {
        if self.record.state == State::Pending {
            return;
        }
        let now = Timestamp::now();
        for record in self.record.containers.values_mut() {
            if let Some(current) = &mut record.current
                && current.exit.is_none()
            {
                current.exit = Some(lost(now));
            }
        }
    }
}

async fn find(shim: &Shim, id: &str) -> Found {
    match shim.state(id, "").await {
        Ok(state) => match state.status {
            TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing => Found::Running,
            TaskStatus::Created => Found::Created,
            TaskStatus::Stopped => Found::Ended,
            _ => Found::Nothing,
        },
        Err(error) => {
            debug!(id, error = text::chain(&error), "the shim doesn't know it");
            Found::Nothing
        }
    }
}
