//! The Task API calls on one connection.

use std::{path::Path, time::Duration};

use containerd_shim_protos::{
    api,
    cgroups::metrics::Metrics as MetricsV1,
    cgroups_v2::metrics::Metrics as MetricsV2,
    protobuf::{self, Message, well_known_types::any::Any},
    ttrpc::{self, Request, asynchronous::Client},
};

use crate::{
    Bootstrap, Connection, CreateRequest, Error, ExecRequest, ExitStatus, ProcessState, Stats,
    Stdio, bootstrap, types::system_time,
};

/// Type URL containerd gives an OCI `process` in an `Any`; its value is JSON.
const PROCESS_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Longest request, bytes: ttrpc's own limit, less room for what it puts around it.
const LONGEST: usize = ttrpc::proto::MESSAGE_LENGTH_MAX - 1024;

/// A connection to one running shim. Cheap to clone.
#[derive(Clone)]
pub struct Shim {
    client: Client,
    address: String,
    service: &'static str,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shim")
            .field("address", &self.address)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

impl Shim {
    /// Runs `SHIM start` for container `id` in `bundle`, which must hold `config.json`, and connects.
    /// Leaves `bootstrap.json` and `address` in the bundle.
    ///
    /// # Errors
    /// [`Error::Spawn`], [`Error::Exit`], [`Error::TimedOut`], [`Error::Reply`], [`Error::Connect`].
    pub async fn start(bootstrap: &Bootstrap, id: &str, bundle: &Path) -> Result<Self, Error> {
        let reply = bootstrap::start(bootstrap, id, bundle).await?;
        Self::dial(reply).await
    }

    /// Connects to a shim that runs: `address` is what [`crate::read_address`] or
    /// [`Shim::address`] gave (`unix:///…`, or bootstrap.json's text).
    ///
    /// # Errors
    /// [`Error::Reply`] if the address makes no sense, [`Error::Connect`] if nobody listens there.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        let reply = bootstrap::parse_reply(address.trim()).ok_or_else(|| Error::Reply {
            what: "a shim's address".to_owned(),
            text: address.to_owned(),
        })?;
        Self::dial(reply).await
    }

    async fn dial(reply: bootstrap::Reply) -> Result<Self, Error> {
        let address = reply.address.clone();
        let socket = if address.starts_with('/') {
            format!("unix://{address}")
        } else {
            address.clone()
        };
        let client = Client::connect(&socket)
            .await
            .map_err(|source| Error::Connect { address, source })?;
        Ok(Self {
            client,
            service: if reply.version == 2 {
                "containerd.task.v2.Task"
            } else {
                "containerd.task.v3.Task"
            },
            address: serde_json::to_string(&reply).unwrap_or(reply.address),
        })
    }

    /// What [`Shim::connect`] takes to reach this shim again.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Creates the container's process, up to but not including its program. Returns its pid.
    pub async fn create(&self, request: CreateRequest) -> Result<u32, Error> {
        let CreateRequest {
            id,
            bundle,
            rootfs,
            stdio,
        } = request;
        let message = api::CreateTaskRequest {
            id: id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            rootfs: rootfs.into_iter().map(Into::into).collect(),
            terminal: stdio.terminal,
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            ..api::CreateTaskRequest::default()
        };
        let answer: api::CreateTaskResponse = self.call("Create", &id, &message).await?;
        Ok(answer.pid)
    }

    /// Lets a created container (`exec_id` empty) or exec go. Returns its pid.
    pub async fn start_task(&self, id: &str, exec_id: &str) -> Result<u32, Error> {
        let message = api::StartRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..api::StartRequest::default()
        };
        let answer: api::StartResponse = self.call("Start", id, &message).await?;
        Ok(answer.pid)
    }

    /// State of a container (`exec_id` empty) or exec.
    pub async fn state(&self, id: &str, exec_id: &str) -> Result<ProcessState, Error> {
        let message = api::StateRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..api::StateRequest::default()
        };
        let answer: api::StateResponse = self.call("State", id, &message).await?;
        let status = answer.status.enum_value_or_default().into();
        Ok(ProcessState {
            exit: (status == crate::TaskStatus::Stopped).then(|| ExitStatus {
                code: answer.exit_status,
                at: system_time(answer.exited_at.as_ref()),
                pid: answer.pid,
            }),
            id: answer.id,
            exec_id: answer.exec_id,
            bundle: answer.bundle.into(),
            pid: answer.pid,
            status,
            stdio: Stdio {
                stdin: answer.stdin,
                stdout: answer.stdout,
                stderr: answer.stderr,
                terminal: answer.terminal,
            },
        })
    }

    /// Waits, without limit, until the process has ended.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<ExitStatus, Error> {
        let message = api::WaitRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..api::WaitRequest::default()
        };
        let answer: api::WaitResponse = self.call("Wait", id, &message).await?;
        Ok(ExitStatus {
            code: answer.exit_status,
            at: system_time(answer.exited_at.as_ref()),
            pid: 0,
        })
    }

    /// Signals the process, or with `all` every process of the container.
    pub async fn kill(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<(), Error> {
        let message = api::KillRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..api::KillRequest::default()
        };
        self.call::<_, api::Empty>("Kill", id, &message)
            .await
            .map(drop)
    }

    /// Adds a process to a running container; [`Shim::start_task`] starts it.
    pub async fn exec(&self, request: ExecRequest) -> Result<(), Error> {
        let message = api::ExecProcessRequest {
            id: request.id.clone(),
            exec_id: request.exec_id,
            terminal: request.stdio.terminal,
            stdin: request.stdio.stdin,
            stdout: request.stdio.stdout,
            stderr: request.stdio.stderr,
            spec: Some(Any {
                type_url: PROCESS_TYPE_URL.to_owned(),
                value: request.process.to_string().into_bytes(),
                ..Any::default()
            })
            .into(),
            ..api::ExecProcessRequest::default()
        };
        self.call::<_, api::Empty>("Exec", &request.id, &message)
            .await
            .map(drop)
    }

    /// Sets the terminal's size in characters.
    pub async fn resize_pty(
        &self,
        id: &str,
        exec_id: &str,
        width: u32,
        height: u32,
    ) -> Result<(), Error> {
        let message = api::ResizePtyRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            width,
            height,
            ..api::ResizePtyRequest::default()
        };
        self.call::<_, api::Empty>("ResizePty", id, &message)
            .await
            .map(drop)
    }

    /// No more stdin: the process reads end-of-file once the caller's own end is closed too.
    pub async fn close_io(&self, id: &str, exec_id: &str) -> Result<(), Error> {
        let message = api::CloseIORequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdin: true,
            ..api::CloseIORequest::default()
        };
        self.call::<_, api::Empty>("CloseIO", id, &message)
            .await
            .map(drop)
    }

    /// Removes a stopped (or never started) container or exec from the shim; unmounts its rootfs.
    pub async fn delete(&self, id: &str, exec_id: &str) -> Result<ExitStatus, Error> {
        let message = api::DeleteRequest {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..api::DeleteRequest::default()
        };
        let answer: api::DeleteResponse = self.call("Delete", id, &message).await?;
        Ok(ExitStatus {
            code: answer.exit_status,
            at: system_time(answer.exited_at.as_ref()),
            pid: answer.pid,
        })
    }

    /// The processes of a container, by pid in the shim's PID namespace.
    pub async fn pids(&self, id: &str) -> Result<Vec<u32>, Error> {
        let message = api::PidsRequest {
            id: id.to_owned(),
            ..api::PidsRequest::default()
        };
        let answer: api::PidsResponse = self.call("Pids", id, &message).await?;
        Ok(answer.processes.iter().map(|p| p.pid).collect())
    }

    /// Resource use of a container.
    pub async fn stats(&self, id: &str) -> Result<Stats, Error> {
        let message = api::StatsRequest {
            id: id.to_owned(),
            ..api::StatsRequest::default()
        };
        let answer: api::StatsResponse = self.call("Stats", id, &message).await?;
        decode_stats(answer.stats()).map_err(|source| Error::Encoding {
            what: "a container's metrics",
            source,
        })
    }

    /// Sets resource limits (an OCI `linux.resources` object).
    pub async fn update(&self, id: &str, resources: &serde_json::Value) -> Result<(), Error> {
        let message = api::UpdateTaskRequest {
            id: id.to_owned(),
            resources: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
                    .to_owned(),
                value: resources.to_string().into_bytes(),
                ..Any::default()
            })
            .into(),
            ..api::UpdateTaskRequest::default()
        };
        self.call::<_, api::Empty>("Update", id, &message)
            .await
            .map(drop)
    }

    /// Pids of shim and task: the cheapest question, a liveness check.
    pub async fn connection(&self, id: &str) -> Result<Connection, Error> {
        let message = api::ConnectRequest {
            id: id.to_owned(),
            ..api::ConnectRequest::default()
        };
        let answer: api::ConnectResponse = self.call("Connect", id, &message).await?;
        Ok(Connection {
            shim_pid: answer.shim_pid,
            task_pid: answer.task_pid,
        })
    }

    /// Ends the shim, unless it still has containers. That the connection breaks is success.
    pub async fn shutdown(&self, id: &str) -> Result<(), Error> {
        let message = api::ShutdownRequest {
            id: id.to_owned(),
            ..api::ShutdownRequest::default()
        };
        match self.call::<_, api::Empty>("Shutdown", id, &message).await {
            Err(e) if !e.is_gone() => Err(e),
            _ => Ok(()),
        }
    }

    /// One request. The messages of task.v2 and task.v3 are the same; only the service's name differs.
    async fn call<Q: Message, A: Message>(
        &self,
        method: &'static str,
        id: &str,
        message: &Q,
    ) -> Result<A, Error> {
        let failed = |source| Error::Call {
            method,
            id: id.to_owned(),
            source,
        };
        let encoding = |what| move |source| Error::Encoding { what, source };
        let payload = message.write_to_bytes().map_err(encoding(method))?;
        if payload.len() > LONGEST {
            return Err(Error::TooLong {
                method,
                id: id.to_owned(),
                bytes: payload.len(),
                limit: LONGEST,
            });
        }
        let request = Request {
            service: self.service.to_owned(),
            method: method.to_owned(),
            payload,
            ..Request::default()
        };
        let response = self.client.request(request).await.map_err(failed)?;
        if let Some(status) = response.status.as_ref()
            && status.code() != ttrpc::Code::OK
        {
            return Err(failed(ttrpc::Error::RpcStatus(status.clone())));
        }
        A::parse_from_bytes(&response.payload).map_err(encoding(method))
    }
}

/// Metrics come in cgroup v1's or v2's form, whichever the shim has.
fn decode_stats(any: &Any) -> protobuf::Result<Stats> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name == "io.containerd.cgroups.v1.Metrics" {
        let metrics = MetricsV1::parse_from_bytes(&any.value)?;
        let usage = metrics.memory.usage.usage;
        return Ok(Stats {
            cpu: Duration::from_nanos(metrics.cpu.usage.total),
            memory_bytes: usage,
            working_set_bytes: usage.saturating_sub(metrics.memory.total_inactive_file),
            pids: metrics.pids.current,
            oom_kills: metrics.memory_oom_control.oom_kill,
        });
    }
    let metrics = MetricsV2::parse_from_bytes(&any.value)?;
    Ok(Stats {
        cpu: Duration::from_micros(metrics.cpu.usage_usec),
        memory_bytes: metrics.memory.usage,
        working_set_bytes: metrics
            .memory
            .usage
            .saturating_sub(metrics.memory.inactive_file),
        pids: metrics.pids.current,
        oom_kills: metrics.memory_events.oom_kill,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// A shim at a socket of the test's own, until `serve` has ended.
    async fn connected<F>(serve: impl FnOnce(UnixListener) -> F) -> (Shim, F::Output)
    where
        F: Future,
    {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let address = format!("unix://{}", socket.display());
        let (shim, served) = tokio::join!(Shim::connect(&address), serve(listener));
        (shim.unwrap(), served)
    }

    #[tokio::test]
    async fn every_call_after_the_shims_end_says_that_it_is_gone() {
        let (shim, ()) = connected(|listener| async move {
            drop(listener.accept().await.unwrap());
        })
        .await;
        // The first may still find the connection, the others its end.
        for _ in 0..3 {
            let error = shim.state("c", "").await.unwrap_err();
            assert!(error.is_gone(), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_request_that_is_too_long_is_not_taken_for_a_dead_shim() {
        let (shim, _stream) =
            connected(|listener| async move { listener.accept().await.unwrap() }).await;
        let request = ExecRequest {
            id: "c".to_owned(),
            process: serde_json::json!({"args": ["x".repeat(LONGEST)]}),
            ..ExecRequest::default()
        };
        let error = shim.exec(request).await.unwrap_err();
        assert!(matches!(error, Error::TooLong { .. }), "{error:?}");
        assert!(!error.is_gone());
    }
}
