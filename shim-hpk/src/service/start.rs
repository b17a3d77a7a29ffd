//! Start, of a container and of an exec.

use std::sync::Arc;

use containerd_shim::protos::events::task::{TaskExecStarted, TaskStart};

use super::{Service, label};
use crate::{
    apply::{
        enter, hooks, launch,
        reaper::{Exit, ended},
    },
    error::Error,
    stdio::Stdin,
};

/// The exit code of what never ran, as a shell's.
const NOT_RUN: u32 = 127;

impl Service {
    /// Lets a created process run; gives its pid.
    pub(super) async fn start_process(&self, id: &str, exec_id: &str) -> Result<u32, Error> {
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
                code: NOT_RUN,
                at: std::time::SystemTime::now(),
            };
            self.with_process(id, exec_id, |process| {
                process.life.started();
                process.ended(exit);
                Ok(())
            })?;
            return Err(e);
        }
        let pid = self.with_process(id, exec_id, |process| Ok(process.pid))? as u32;
        if exec_id.is_empty() {
            self.inner.events.send(&TaskStart {
                container_id: id.to_owned(),
                pid,
                ..Default::default()
            });
        } else {
            self.inner.events.send(&TaskExecStarted {
                container_id: id.to_owned(),
                exec_id: exec_id.to_owned(),
                pid,
                ..Default::default()
            });
        }
        if let Some(exit) = self.with_process(id, exec_id, |process| Ok(process.life.started()))? {
            self.announce_exit(id, exec_id, exit);
        }
        if exec_id.is_empty() {
            self.run_poststart(id, pid as i32).await?;
        }
        Ok(pid)
    }

    /// A container whose `poststart` hook fails is stopped.
    async fn run_poststart(&self, id: &str, pid: i32) -> Result<(), Error> {
        let Some(hooks) = self.with_container(id, |container| Ok(container.hooks.clone()))? else {
            return Ok(());
        };
        let state = hooks.state("running", Some(pid));
        let ran = hooks::run(&hooks.poststart, &state, &self.inner.reaper).await;
        if ran.is_err() {
            launch::terminate(pid);
            let end = self.with_process(id, "", |process| Ok(process.end()))?;
            ended(end).await;
        }
        ran
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
        let (init, cgroup, process, stdio) = self.with_container(id, |container| {
            if !container.init.life.is_alive() {
                return Err(Error::Precondition(format!(
                    "container {id} is not running"
                )));
            }
            if container.paused {
                return Err(Error::Precondition(format!("container {id} is paused")));
            }
            let (init, cgroup) = (container.init.pid, Arc::clone(&container.cgroup));
            let seccomp = container.seccomp.clone();
            let exec = container.process(id, exec_id)?;
            let mut process = exec.program.take().unwrap_or_default();
            process.seccomp = seccomp;
            Ok((init, cgroup, process, exec.stdio.clone()))
        })?;
        let inner = &self.inner;
        let prepared = self
            .prepare(id, &stdio, Stdin::Now, |streams| async move {
                let target = enter::Target {
                    init,
                    cgroup: &cgroup,
                };
                enter::enter(target, process, &streams, &inner.programs, &inner.reaper).await
            })
            .await?;
        self.with_process(id, exec_id, |process| {
            process.set_up_exec(prepared.pid, prepared.held);
            Ok(())
        })?;
        self.follow(id, exec_id, prepared.exit);
        prepared.channel.go(None).await
    }
}
