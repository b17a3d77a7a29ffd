//! What takes a cgroup: Pause, Resume, Update, Stats, and the event of a kill for lack of memory.

use std::sync::Arc;

use containerd_shim::protos::{
    events::task::{TaskOOM, TaskPaused, TaskResumed},
    protobuf::well_known_types::any::Any,
};
use hpk_cgroup::{Cgroup, oom};
use oci_spec::runtime::LinuxResources;

use super::{Service, containers::Watched};
use crate::{error::Error, life::Life, stats};

impl Service {
    /// Stops all processes of a running container until [`Service::resume_container`].
    pub(super) async fn pause_container(&self, id: &str) -> Result<(), Error> {
        let cgroup = self.with_container(id, |container| {
            if container.init.life != Life::Running || container.paused {
                let why = format!("container {id} is not running");
                return Err(Error::Precondition(why));
            }
            Ok(Arc::clone(&container.cgroup))
        })?;
        cgroup.freeze().await?;
        let frozen = self.with_container(id, |container| {
            let alive = container.init.life.is_alive();
            container.paused = alive;
            Ok(alive)
        })?;
        if !frozen {
            // It was killed on the way there.
            return Err(Error::Precondition(format!("container {id} has stopped")));
        }
        self.inner.events.send(&TaskPaused {
            container_id: id.to_owned(),
            ..Default::default()
        });
        Ok(())
    }

    /// Lets a paused container run again.
    pub(super) fn resume_container(&self, id: &str) -> Result<(), Error> {
        self.with_container(id, |container| {
            if container.paused {
                return Ok(());
            }
            Err(Error::Precondition(format!("container {id} is not paused")))
        })?;
        self.thaw(id)?;
        self.inner.events.send(&TaskResumed {
            container_id: id.to_owned(),
            ..Default::default()
        });
        Ok(())
    }

    /// Thaws a paused container; nothing for another one.
    pub(super) fn thaw(&self, id: &str) -> Result<(), Error> {
        self.with_container(id, |container| {
            if container.paused {
                container.cgroup.thaw()?;
                container.paused = false;
            }
            Ok(())
        })
    }

    /// Sets a container's limits anew.
    pub(super) fn update_container(&self, id: &str, resources: Option<&Any>) -> Result<(), Error> {
        let cgroup = self.with_container(id, |container| {
            if !container.init.life.is_alive() {
                return Err(Error::Precondition(format!(
                    "container {id} is not running"
                )));
            }
            Ok(Arc::clone(&container.cgroup))
        })?;
        let json = resources.map_or(&b"{}"[..], |any| any.value.as_slice());
        let resources: LinuxResources =
            serde_json::from_slice(json).map_err(|e| Error::Invalid {
                field: "resources".into(),
                why: e.to_string(),
            })?;
        let Some(version) = cgroup.version() else {
            return Err(Error::Unimplemented(
                "update: no cgroup can be made here, so no limit can be set",
            ));
        };
        let not_done = cgroup.limit(version, &resources)?;
        match not_done.is_empty() {
            true => Ok(()),
            // A caller that changes a limit must learn that it isn't changed.
            false => Err(Error::Precondition(not_done.join("; "))),
        }
    }

    /// A container's figures.
    pub(super) fn stats_of(&self, id: &str) -> Result<Any, Error> {
        let pids = self.members(id)?;
        let cgroup = self.with_container(id, |container| Ok(Arc::clone(&container.cgroup)))?;
        stats::metrics(&cgroup, &pids)
            .map_err(|e| Error::Container(format!("encode metrics of {id}: {e}")))
    }

    /// Tells of kills for lack of memory from now on.
    pub(super) fn watch_memory(&self, id: &str, cgroup: &Cgroup) {
        let watch = match oom::Watch::of(cgroup) {
            Ok(Some(watch)) => Arc::new(watch),
            Ok(None) => return,
            Err(e) => return log::warn!("{id}: no event will tell of a lack of memory: {e}"),
        };
        let (service, name, watched) = (self.clone(), id.to_owned(), Arc::clone(&watch));
        let task = tokio::spawn(async move {
            loop {
                if let Err(e) = watched.changed().await {
                    return log::warn!("{name}: watch its memory: {e}");
                }
                service.announce_oom(&name);
            }
        });
        if let Some(container) = self.containers().get_mut(id) {
            container.oom = Some(Watched { watch, task });
        }
    }

    /// Sends the event if a process was killed for lack of memory since the last time.
    pub(super) fn announce_oom(&self, id: &str) {
        let fired = self
            .containers()
            .get(id)
            .and_then(|c| c.oom.as_ref())
            .is_some_and(|w| w.watch.fired());
        if fired {
            self.inner.events.send(&TaskOOM {
                container_id: id.to_owned(),
                ..Default::default()
            });
        }
    }
}
