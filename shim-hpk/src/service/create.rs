//! Create, and what a container's and an exec's process have in common.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use containerd_shim::protos::events::task::TaskExit;
use hpk_cgroup::Cgroup;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use oci_spec::runtime::Spec;

use super::{Container, Service};
use crate::{
    apply::{
        Waiting,
        channel::Channel,
        gpu as look, helped, hooks,
        launch::{self, Place},
        reaper::{Exit, ExitReceiver, ended},
    },
    bootstrap::timestamp,
    config,
    error::Error,
    plan::{
        self, gpu,
        hooks::Hooks,
        rootfs::{Helped, Rootfs},
    },
    procfs::Membership,
    record,
    stdio::{self, Held, Stdin, Stdio},
};

/// A Create request in this crate's words.
pub struct Create {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: Rootfs,
    pub stdio: Stdio,
}

/// A process that is set up, with its streams connected.
pub struct Prepared {
    pub pid: i32,
    pub exit: ExitReceiver,
    pub channel: Channel,
    pub held: Held,
}

/// What came of a container's drivers.
#[derive(Default)]
struct Drivers {
    has_libraries: bool,
    warnings: Vec<String>,
}

impl Service {
    /// Makes a container, up to but not including its program; gives its pid.
    pub(super) async fn create_container(&self, request: Create) -> Result<u32, Error> {
        let Create {
            id,
            bundle,
            rootfs,
            stdio,
        } = request;
        let mut spec = config::load(&bundle)?;
        let drivers = self.add_drivers(&mut spec).await?;
        let mut plan = plan::container(
            &spec,
            &id,
            &bundle,
            rootfs.mounts,
            stdio.terminal,
            &self.inner.mapped,
        )?;
        drop(spec);
        plan.inherited.gpu_libraries = drivers.has_libraries;
        let hooks = Arc::new(std::mem::take(&mut plan.hooks));
        for warning in plan.warnings.iter().chain(&drivers.warnings) {
            log::warn!("{id}: {warning}");
        }
        let container = Container::new(bundle.clone(), stdio.clone());
        match self.containers().entry(id.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => {
                return Err(Error::AlreadyExists(format!("container {id}")));
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(container);
            }
        }
        let made = match Cgroup::make(&self.inner.hierarchies, &plan.cgroup) {
            Ok((mut cgroup, warnings)) => {
                warnings.iter().for_each(|w| log::warn!("{id}: {w}"));
                let place = Place {
                    bundle: &bundle,
                    cgroup: &mut cgroup,
                    hooks: &hooks,
                };
                let made = match self.mount(rootfs.helped, &bundle).await {
                    Ok(()) => self.make(&id, plan, &stdio, place).await,
                    Err(e) => Err(e),
                };
                if made.is_err() {
                    cgroup.remove().await;
                    self.run_poststop(&id, &hooks).await;
                }
                made
            }
            Err(e) => Err(e.into()),
        };
        if made.is_err() {
            self.containers().remove(&id);
            record::remove(&bundle);
        } else {
            self.with_container(&id, |container| {
                container.hooks = Some(hooks).filter(|h| **h != Hooks::default());
                Ok(())
            })?;
        }
        made
    }

    /// Adds the drivers of the GPUs that the container asks for to its spec.
    async fn add_drivers(&self, spec: &mut Spec) -> Result<Drivers, Error> {
        let wanted = gpu::wanted(spec)?;
        let mut all = Drivers::default();
        for each in wanted {
            let found = look::driver(each, &self.inner.programs, &self.inner.reaper).await?;
            gpu::add(spec, each, &found.driver)?;
            all.has_libraries |= !found.driver.libraries.is_empty();
            all.warnings.extend(found.warning);
        }
        Ok(all)
    }

    /// What of the root file system is no system call's to mount.
    async fn mount(&self, helped: Option<Helped>, bundle: &Path) -> Result<(), Error> {
        match helped {
            Some(it) => helped::mount(&it, bundle, &self.inner.programs, &self.inner.reaper).await,
            None => Ok(()),
        }
    }

    /// A failure is told in the log only: the container is gone whatever they do.
    pub(super) async fn run_poststop(&self, id: &str, hooks: &Hooks) {
        let state = hooks.state("stopped", None);
        if let Err(e) = hooks::run(&hooks.poststop, &state, &self.inner.reaper).await {
            log::warn!("{id}: {e}");
        }
    }

    async fn make(
        &self,
        id: &str,
        plan: plan::Container,
        stdio: &Stdio,
        place: Place<'_>,
    ) -> Result<u32, Error> {
        let inner = &self.inner;
        let own_pid_namespace = plan.pid_namespace == plan::namespaces::Pid::New;
        let uid = plan.process.uid;
        let (seccomp, inherited) = (plan.process.seccomp.clone(), plan.inherited);
        let Place {
            bundle,
            cgroup,
            hooks,
        } = place;
        let place = Place {
            bundle,
            cgroup: &mut *cgroup,
            hooks,
        };
        let prepared = self
            .prepare(id, stdio, Stdin::AtStart, |streams| {
                launch::launch(plan, streams, place, &inner.programs, &inner.reaper)
            })
            .await?;
        let cgroup = Arc::new(std::mem::take(cgroup));
        let (pid, exit) = (prepared.pid, prepared.exit);
        self.with_container(id, |container| {
            container.membership = Membership::of(pid, own_pid_namespace);
            container.init.set_up(pid, prepared.channel, prepared.held);
            container.init.uid = uid;
            container.seccomp = seccomp;
            container.inherited = inherited;
            container.cgroup = Arc::clone(&cgroup);
            Ok(())
        })?;
        self.watch_memory(id, &cgroup);
        self.follow(id, "", exit);
        Ok(pid as u32)
    }

    /// Opens the streams, has `run` make a process with them, and connects its terminal. Of what
    /// fails nothing is left.
    pub(super) async fn prepare<F>(
        &self,
        id: &str,
        stdio: &Stdio,
        stdin: Stdin,
        run: impl FnOnce(Vec<OwnedFd>) -> F,
    ) -> Result<Prepared, Error>
    where
        F: Future<Output = Result<Waiting, Error>>,
    {
        let (streams, mut held) =
            stdio::open(stdio, stdin, &self.owner(id), &self.inner.reaper).await?;
        let made = run(streams).await;
        let waiting = match made {
            Ok(waiting) => waiting,
            Err(e) => {
                held.close().await;
                return Err(e);
            }
        };
        let attached = match waiting.terminal {
            Some(master) => held.attach_terminal(master, stdio).await,
            None => Ok(()),
        };
        if let Err(e) = attached {
            launch::terminate(waiting.pid);
            ended(waiting.exit).await;
            held.close().await;
            return Err(e);
        }
        Ok(Prepared {
            pid: waiting.pid,
            exit: waiting.exit,
            channel: waiting.channel,
            held,
        })
    }

    /// Tells of the process's end when it comes.
    pub(super) fn follow(&self, id: &str, exec_id: &str, exit: ExitReceiver) {
        let (service, id, exec_id) = (self.clone(), id.to_owned(), exec_id.to_owned());
        tokio::spawn(async move {
            let exit = ended(exit).await;
            // A kill for lack of memory is told before the end that it is the reason of.
            service.announce_oom(&id);
            let announce = service.with_process(&id, &exec_id, |process| Ok(process.ended(exit)));
            if exec_id.is_empty() {
                service.kill_rest(&id);
            }
            if announce.unwrap_or(false) {
                service.announce_exit(&id, &exec_id, exit);
            }
        });
    }

    /// What a container's first process leaves behind in a PID namespace that isn't its own, or an
    /// Apptainer that was kept and killed.
    fn kill_rest(&self, id: &str) {
        let membership = self.containers().get(id).and_then(|c| c.membership);
        // Where Apptainer stays, the end that was told may be its own.
        let kept = self.inner.programs.keep_engine;
        let left = membership.filter(|m| kept || !m.ends_with_init());
        for pid in left.map(|m| m.pids()).unwrap_or_default() {
            // ESRCH: it has ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    pub(super) fn announce_exit(&self, id: &str, exec_id: &str, exit: Exit) {
        let pid = self.with_process(id, exec_id, |p| Ok(p.pid)).unwrap_or(0);
        self.inner.events.send(&TaskExit {
            container_id: id.to_owned(),
            id: if exec_id.is_empty() { id } else { exec_id }.to_owned(),
            pid: pid as u32,
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        });
    }
}
