//! The Task API for the containers of one pod.
//!
//! - `requests` – the trait containerd's protocol gives, call by call.
//! - [`containers`] – the containers' and execs' states, and what changes them.

mod containers;
mod requests;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use containerd_shim::{
    asynchronous::ExitSignal,
    protos::events::task::{TaskDelete, TaskExecStarted, TaskExit, TaskStart},
};
use hpk_pause::wire;
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    apply::{
        Waiting, enter, launch,
        programs::Programs,
        reaper::{Exit, ExitReceiver, Reaper, ended},
    },
    bootstrap::timestamp,
    config,
    error::Error,
    events::Events,
    logger::Owner,
    plan,
    procfs::Membership,
    record,
    stdio::{self, Stdin, Stdio},
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
    events: Events,
    reaper: Reaper,
    exit: Arc<ExitSignal>,
    containers: Mutex<HashMap<String, Container>>,
}

/// A Create request in this crate's words.
struct Create {
    id: String,
    bundle: PathBuf,
    rootfs: Vec<plan::rootfs::Mount>,
    stdio: Stdio,
}

impl Service {
    /// A service with no container yet.
    pub fn new(
        namespace: String,
        programs: Programs,
        events: Events,
        reaper: Reaper,
        exit: Arc<ExitSignal>,
    ) -> Self {
        let containers = Mutex::default();
        Self {
            inner: Arc::new(Inner {
                namespace,
                programs,
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

    /// Runs `f` on a process, the container's own if `exec_id` is empty.
    fn with_process<T>(
        &self,
        id: &str,
        exec_id: &str,
        f: impl FnOnce(&mut Process) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut all = self.containers();
        let container = all
            .get_mut(id)
            .ok_or_else(|| Error::NotFound(format!("container {id}")))?;
        f(container.process(id, exec_id)?)
    }

    fn owner(&self, id: &str) -> Owner {
        Owner {
            namespace: self.inner.namespace.clone(),
            id: id.to_owned(),
        }
    }

    async fn create_container(&self, request: Create) -> Result<u32, Error> {
        let id = request.id.clone();
        let spec = config::load(&request.bundle)?;
        let plan = plan::container(
            &spec,
            &request.bundle,
            request.rootfs,
            request.stdio.terminal,
        )?;
        drop(spec);
        for warning in &plan.warnings {
            log::warn!("{id}: {warning}");
        }
        let container = Container::new(request.bundle.clone(), request.stdio.clone());
        match self.containers().entry(id.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => {
                return Err(Error::AlreadyExists(format!("container {id}")));
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(container);
            }
        }
        let made = self.make(&id, &request.bundle, plan, &request.stdio).await;
        if made.is_err() {
            self.containers().remove(&id);
            record::remove(&request.bundle);
        }
        made
    }

    async fn make(
        &self,
        id: &str,
        bundle: &Path,
        plan: plan::Container,
        stdio: &Stdio,
    ) -> Result<u32, Error> {
        let inner = &self.inner;
        let own_pid_namespace = plan.pid_namespace == plan::PidNamespace::New;
        let uid = plan.process.uid;
        let (streams, mut held) =
            stdio::open(stdio, Stdin::AtStart, &self.owner(id), &inner.reaper).await?;
        let made = launch::launch(plan, &streams, bundle, &inner.programs, &inner.reaper).await;
        drop(streams);
        let waiting = match made {
            Ok(waiting) => waiting,
            Err(e) => {
                held.close().await;
                return Err(e);
            }
        };
        let Waiting {
            pid,
            exit,
            channel,
            terminal,
        } = waiting;
        if let Some(master) = terminal {
            held.attach_terminal(master, stdio)?;
        }
        if let Some(container) = self.containers().get_mut(id) {
            container.membership = Membership::of(pid, own_pid_namespace);
            container.init.set_up(pid, channel, held);
            container.init.uid = uid;
        }
        self.follow(id, "", exit);
        Ok(pid as u32)
    }

    /// Tells of the process's end when it comes.
    fn follow(&self, id: &str, exec_id: &str, exit: ExitReceiver) {
        let (service, id, exec_id) = (self.clone(), id.to_owned(), exec_id.to_owned());
        tokio::spawn(async move {
            let exit = ended(exit).await;
            let announce = service.with_process(&id, &exec_id, |process| Ok(process.ended(exit)));
            if exec_id.is_empty() {
                service.kill_rest(&id);
            }
            if announce.unwrap_or(false) {
                service.announce_exit(&id, &exec_id, exit);
            }
        });
    }

    /// What a container's first process leaves behind in a PID namespace that isn't its own.
    fn kill_rest(&self, id: &str) {
        let membership = self.containers().get(id).and_then(|c| c.membership);
        let left = membership.filter(|m| !m.ends_with_init());
        for pid in left.map(|m| m.pids()).unwrap_or_default() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    fn announce_exit(&self, id: &str, exec_id: &str, exit: Exit) {
        let pid = self.with_process(id, exec_id, |p| Ok(p.pid)).unwrap_or(0);
        self.inner.events.send(TaskExit {
            container_id: id.to_owned(),
            id: if exec_id.is_empty() { id } else { exec_id }.to_owned(),
            pid: pid as u32,
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        });
    }

    async fn start_process(&self, id: &str, exec_id: &str) -> Result<u32, Error> {
        let what = label(id, exec_id);
        self.with_process(id, exec_id, |process| process.life.start(&what))?;
        let started = if exec_id.is_empty() {
            self.start_init(id).await
        } else {
            self.start_exec(id, exec_id).await
        };
        if let Err(e) = started {
            // Nothing ran, or what ran said why it couldn't: for whoever waits that is an end too.
            let exit = Exit {
                code: 127,
                at: std::time::SystemTime::now(),
            };
            let _ = self.with_process(id, exec_id, |process| {
                process.life.started();
                process.ended(exit);
                Ok(())
            });
            return Err(e);
        }
        let pid = self.with_process(id, exec_id, |process| Ok(process.pid))? as u32;
        if exec_id.is_empty() {
            self.inner.events.send(TaskStart {
                container_id: id.to_owned(),
                pid,
                ..Default::default()
            });
        } else {
            self.inner.events.send(TaskExecStarted {
                container_id: id.to_owned(),
                exec_id: exec_id.to_owned(),
                pid,
                ..Default::default()
            });
        }
        if let Some(exit) = self.with_process(id, exec_id, |process| Ok(process.life.started()))? {
            self.announce_exit(id, exec_id, exit);
        }
        Ok(pid)
    }

    async fn start_init(&self, id: &str) -> Result<(), Error> {
        let (channel, stdin) = self.with_process(id, "", |process| {
            let channel = process.channel.take();
            let no_process = || Error::Precondition(format!("container {id} has no process"));
            Ok((channel.ok_or_else(no_process)?, process.open_stdin()?))
        })?;
        channel.go(stdin).await
    }

    async fn start_exec(&self, id: &str, exec_id: &str) -> Result<(), Error> {
        let (init, process, stdio) = {
            let mut all = self.containers();
            let container = all
                .get_mut(id)
                .ok_or_else(|| Error::NotFound(format!("container {id}")))?;
            if !container.init.life.is_alive() {
                return Err(Error::Precondition(format!(
                    "container {id} is not running"
                )));
            }
            let init = container.init.pid;
            let exec = container.process(id, exec_id)?;
            let process = exec.program.take().unwrap_or_else(wire::Process::default);
            (init, process, exec.stdio.clone())
        };
        let inner = &self.inner;
        let (streams, mut held) =
            stdio::open(&stdio, Stdin::Now, &self.owner(id), &inner.reaper).await?;
        let entered = enter::enter(init, process, &streams, &inner.programs, &inner.reaper).await;
        drop(streams);
        let waiting = match entered {
            Ok(waiting) => waiting,
            Err(e) => {
                held.close().await;
                return Err(e);
            }
        };
        let Waiting {
            pid,
            exit,
            channel,
            terminal,
        } = waiting;
        if let Some(master) = terminal {
            held.attach_terminal(master, &stdio)?;
        }
        self.with_process(id, exec_id, |process| {
            process.set_up_exec(pid, held);
            Ok(())
        })?;
        self.follow(id, exec_id, exit);
        channel.go(None).await
    }

    fn signal(&self, id: &str, exec_id: &str, signal: i32, all: bool) -> Result<(), Error> {
        let what = label(id, exec_id);
        let pid = self.with_process(id, exec_id, |process| {
            if process.life.is_alive() && process.pid > 0 {
                Ok(process.pid)
            } else {
                Err(Error::NotFound(format!(
                    "process of {what} that can be signalled"
                )))
            }
        })?;
        let targets = if all && exec_id.is_empty() {
            self.membership(id)?.map(|m| m.pids()).unwrap_or_default()
        } else {
            vec![pid]
        };
        for target in targets {
            // The number as it is: `Signal` knows no real-time ones.
            match send_signal(target, signal) {
                Ok(()) => {}
                Err(Errno::ESRCH) if target != pid => {}
                Err(Errno::ESRCH) => return Err(Error::NotFound(format!("process of {what}"))),
                Err(Errno::EINVAL) => {
                    return Err(Error::Invalid {
                        field: "signal".into(),
                        why: signal.to_string(),
                    });
                }
                Err(e) => return Err(Error::system(format!("signal {what}"))(e)),
            }
        }
        Ok(())
    }

    /// What tells a living container's processes from others.
    fn membership(&self, id: &str) -> Result<Option<Membership>, Error> {
        let all = self.containers();
        let container = all
            .get(id)
            .ok_or_else(|| Error::NotFound(format!("container {id}")))?;
        Ok(container
            .membership
            .filter(|_| container.init.life.is_alive()))
    }

    /// The container's processes, for figures and lists.
    fn members(&self, id: &str) -> Result<Vec<i32>, Error> {
        Ok(self
            .membership(id)?
            .map(|m| m.descendants())
            .unwrap_or_default())
    }

    async fn delete_process(&self, id: &str, exec_id: &str) -> Result<(u32, Exit), Error> {
        let what = label(id, exec_id);
        let waiting_init = self.with_process(id, exec_id, |process| {
            process.deletable(&what)?;
            Ok(process.life.is_alive() && exec_id.is_empty())
        })?;
        if waiting_init {
            // Created and never started: its end is ours to bring about.
            self.signal(id, "", libc::SIGKILL, false)?;
            let end = self.with_process(id, "", |process| Ok(process.end()))?;
            ended(end).await;
        }
        let (mut process, bundle) = {
            let mut all = self.containers();
            if exec_id.is_empty() {
                let container = all
                    .remove(id)
                    .ok_or_else(|| Error::NotFound(what.clone()))?;
                (container.init, Some(container.bundle))
            } else {
                let container = all
                    .get_mut(id)
                    .ok_or_else(|| Error::NotFound(what.clone()))?;
                (
                    container
                        .execs
                        .remove(exec_id)
                        .ok_or_else(|| Error::NotFound(what.clone()))?,
                    None,
                )
            }
        };
        let exit = process.life.exit().unwrap_or(Exit {
            code: 0,
            at: std::time::SystemTime::now(),
        });
        process.ended(exit);
        if let Some(held) = process.held.take() {
            held.close().await;
        }
        if let Some(bundle) = bundle {
            record::remove(&bundle);
            self.inner.events.send(TaskDelete {
                container_id: id.to_owned(),
                id: id.to_owned(),
                pid: process.pid as u32,
                exit_status: exit.code,
                exited_at: Some(timestamp(exit.at)).into(),
                ..Default::default()
            });
        }
        Ok((process.pid as u32, exit))
    }
}

#[allow(unsafe_code)]
fn send_signal(pid: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: integers only; `pid` is positive, so it is one process.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}
