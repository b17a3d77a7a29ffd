//! The Task API, call by call: protobuf in, protobuf out, the work is [`Service`]'s.

use std::path::PathBuf;

use async_trait::async_trait;
use containerd_shim::{
    Task, TtrpcContext, TtrpcResult,
    api::{
        CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
        DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PidsRequest,
        PidsResponse, ResizePtyRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
        StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest, WaitRequest,
        WaitResponse,
    },
    protos::{
        api::{CheckpointTaskRequest, PauseRequest, ProcessInfo, ResumeRequest},
        events::task::{TaskCreate, TaskExecAdded, TaskIO},
        protobuf::EnumOrUnknown,
    },
};

use super::{Service, create::Create};
use crate::{
    apply::reaper::ended,
    bootstrap::timestamp,
    error::Error,
    life::Life,
    plan::{self, rootfs::Rootfs},
    stdio::Stdio,
};

/// Does work that a caller's hanging up must not leave half done.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|e| Err(Error::Container(format!("the request broke off: {e}"))))
}

#[async_trait]
impl Task for Service {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> TtrpcResult<CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(Error::Unimplemented("restoring a checkpoint").into());
        }
        let bundle = PathBuf::from(&request.bundle);
        let mut rootfs = Rootfs::default();
        for m in &request.rootfs {
            rootfs.add(&bundle, &m.type_, &m.source, &m.options)?;
        }
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let create = Create {
            id: request.id.clone(),
            bundle,
            rootfs,
            stdio,
        };
        let service = self.clone();
        let pid = to_the_end(async move { service.create_container(create).await })
            .await
            .inspect_err(|e| log::error!("create {}: {e}", request.id))?;
        self.inner.events.send(&TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(TaskIO {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
                ..Default::default()
            })
            .into(),
            pid,
            ..Default::default()
        });
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> TtrpcResult<StartResponse> {
        let service = self.clone();
        let pid =
            to_the_end(async move { service.start_process(&request.id, &request.exec_id).await })
                .await?;
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> TtrpcResult<StateResponse> {
        let mut all = self.containers();
        let container = all
            .get_mut(&request.id)
            .ok_or_else(|| Error::NotFound(format!("container {}", request.id)))?;
        let bundle = container.bundle.to_string_lossy().into_owned();
        let paused = container.paused && request.exec_id.is_empty();
        let process = container.process(&request.id, &request.exec_id)?;
        let status = match process.life {
            Life::Creating => Status::UNKNOWN,
            Life::Created => Status::CREATED,
            Life::Starting(_) | Life::Running if paused => Status::PAUSED,
            Life::Starting(_) | Life::Running => Status::RUNNING,
            Life::Stopped(_) => Status::STOPPED,
        };
        let exit = match process.life {
            Life::Stopped(exit) => Some(exit),
            _ => None,
        };
        Ok(StateResponse {
            id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            bundle,
            pid: process.pid as u32,
            status: EnumOrUnknown::new(status),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status: exit.map_or(0, |e| e.code),
            exited_at: exit.map(|e| timestamp(e.at)).into(),
            ..Default::default()
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> TtrpcResult<WaitResponse> {
        let end = self.with_process(&request.id, &request.exec_id, |process| Ok(process.end()))?;
        let exit = ended(end).await;
        Ok(WaitResponse {
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> TtrpcResult<Empty> {
        self.signal(
            &request.id,
            &request.exec_id,
            request.signal as i32,
            request.all,
        )?;
        Ok(Empty::default())
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> TtrpcResult<DeleteResponse> {
        let service = self.clone();
        let (pid, exit) =
            to_the_end(async move { service.delete_process(&request.id, &request.exec_id).await })
                .await?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> TtrpcResult<Empty> {
        let spec = serde_json::from_slice(&request.spec().value).map_err(Error::ExecSpec)?;
        let inherited = self.with_container(&request.id, |container| Ok(container.inherited))?;
        let (program, warnings) =
            plan::exec(&spec, request.terminal, &self.inner.mapped, inherited)?;
        for warning in warnings {
            log::warn!("{}: {warning}", super::label(&request.id, &request.exec_id));
        }
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        self.with_container(&request.id, |container| {
            container.add_exec(&request.id, &request.exec_id, program, stdio)
        })?;
        self.inner.events.send(&TaskExecAdded {
            container_id: request.id,
            exec_id: request.exec_id,
            ..Default::default()
        });
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> TtrpcResult<Empty> {
        let (columns, rows) = (request.width as u16, request.height as u16);
        let resized = self.with_process(&request.id, &request.exec_id, |process| {
            let held = process.held.as_ref();
            held.map_or(Ok(false), |h| h.resize(columns, rows))
                .map_err(Error::system("resize"))
        })?;
        if !resized {
            let what = super::label(&request.id, &request.exec_id);
            return Err(Error::Precondition(format!("{what} has no terminal")).into());
        }
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> TtrpcResult<Empty> {
        if request.stdin {
            self.with_process(&request.id, &request.exec_id, |process| {
                process.close_stdin();
                Ok(())
            })?;
        }
        Ok(Empty::default())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> TtrpcResult<PidsResponse> {
        let processes = self
            .members(&request.id)?
            .into_iter()
            .map(|pid| ProcessInfo {
                pid: pid as u32,
                ..Default::default()
            })
            .collect();
        Ok(PidsResponse {
            processes,
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> TtrpcResult<StatsResponse> {
        Ok(StatsResponse {
            stats: Some(self.stats_of(&request.id)?).into(),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> TtrpcResult<ConnectResponse> {
        let task_pid = self
            .containers()
            .get(&request.id)
            .map_or(0, |c| c.init.pid as u32);
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> TtrpcResult<Empty> {
        if request.now || self.containers().is_empty() {
            self.inner.exit.signal();
        }
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> TtrpcResult<Empty> {
        self.update_container(&request.id, request.resources.as_ref())?;
        Ok(Empty::default())
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> TtrpcResult<Empty> {
        let service = self.clone();
        to_the_end(async move { service.pause_container(&request.id).await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> TtrpcResult<Empty> {
        self.resume_container(&request.id)?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> TtrpcResult<Empty> {
        Err(Error::Unimplemented("checkpoint").into())
    }
}
