//! The Task API for the containers of one pod.
//!
//! - `requests` – the trait containerd's protocol gives, call by call.
//! - [`containers`] – the containers' and execs' states, and what changes them.
//! - `create`, `start`, `signals`, `delete` – a container's way through them. `limits` – its cgroup.

mod containers;
mod create;
mod delete;
mod limits;
mod requests;
mod signals;
mod start;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use containerd_shim::asynchronous::ExitSignal;
use hpk_cgroup::Hierarchy;
use hpk_userns::Mapped;

use crate::{
    apply::{programs::Programs, reaper::Reaper},
    error::Error,
    events::Events,
    logger::Owner,
    procfs::Membership,
};
use containers::{Container, Process, label};

/// Serves one pod.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    namespace: String,
    programs: Programs,
    hierarchies: Vec<Hierarchy>,
    mapped: Mapped,
    events: Events,
    reaper: Reaper,
    exit: Arc<ExitSignal>,
    containers: Mutex<HashMap<String, Container>>,
}

impl Service {
    /// A service with no container yet.
    pub fn new(
        namespace: String,
        programs: Programs,
        hierarchies: Vec<Hierarchy>,
        mapped: Mapped,
        events: Events,
        reaper: Reaper,
        exit: Arc<ExitSignal>,
    ) -> Self {
        let containers = Mutex::default();
        Self {
            inner: Arc::new(Inner {
                namespace,
                programs,
                hierarchies,
                mapped,
                events,
                reaper,
                exit,
                containers,
            }),
        }
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Container>> {
        self.inner
            .containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on a container.
    fn with_container<T>(
        &self,
        id: &str,
        f: impl FnOnce(&mut Container) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut all = self.containers();
        let container = all.get_mut(id);
        f(container.ok_or_else(|| Error::NotFound(format!("container {id}")))?)
    }

    /// Runs `f` on a process, the container's own if `exec_id` is empty.
    fn with_process<T>(
        &self,
        id: &str,
        exec_id: &str,
        f: impl FnOnce(&mut Process) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.with_container(id, |container| f(container.process(id, exec_id)?))
    }

    fn owner(&self, id: &str) -> Owner {
        Owner {
            namespace: self.inner.namespace.clone(),
            id: id.to_owned(),
        }
    }

    /// What tells a living container's processes from others.
    fn membership(&self, id: &str) -> Result<Option<Membership>, Error> {
        self.with_container(id, |container| {
            let alive = container.init.life.is_alive();
            Ok(container.membership.filter(|_| alive))
        })
    }

    /// The container's processes, for figures and lists.
    fn members(&self, id: &str) -> Result<Vec<i32>, Error> {
        Ok(self
            .membership(id)?
            .map(|m| m.descendants())
            .unwrap_or_default())
    }
}
