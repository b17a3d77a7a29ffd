//! Delete, of a container and of an exec.

use containerd_shim::protos::events::task::TaskDelete;

use super::{Container, Service, label};
use crate::{
    apply::reaper::{Exit, ended},
    bootstrap::timestamp,
    error::Error,
    record,
};

impl Service {
    /// Forgets an ended process, with all that was kept for it; gives its pid and its end.
    pub(super) async fn delete_process(
        &self,
        id: &str,
        exec_id: &str,
    ) -> Result<(u32, Exit), Error> {
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
        let not_found = || Error::NotFound(what.clone());
        let (mut process, container) = {
            let mut all = self.containers();
            if exec_id.is_empty() {
                let container = all.remove(id).ok_or_else(not_found)?;
                let Container {
                    init,
                    bundle,
                    cgroup,
                    oom,
                    hooks,
                    ..
                } = container;
                (init, Some((bundle, cgroup, oom, hooks)))
            } else {
                let container = all.get_mut(id).ok_or_else(not_found)?;
                (container.execs.remove(exec_id).ok_or_else(not_found)?, None)
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
        if let Some((bundle, cgroup, oom, hooks)) = container {
            // The kernel tells a watch of the cgroup's removal too.
            drop(oom);
            cgroup.remove().await;
            if let Some(hooks) = hooks {
                self.run_poststop(id, &hooks).await;
            }
            record::remove(&bundle);
            self.inner.events.send(&TaskDelete {
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
