//! The endpoint a shim forwards its events to (`TTRPC_ADDRESS`).
//!
//! Events are hints. A shim keeps a few while nobody serves, then drops them.

use std::{
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use async_trait::async_trait;
use containerd_shim_protos::{
    api,
    events::task::{
        TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskStart,
    },
    protobuf::{Message, well_known_types::any::Any},
    shim_async::{Events as EventsService, create_events},
    ttrpc::{
        self,
        asynchronous::{Server, TtrpcContext, transport::Listener},
    },
};
use tokio::sync::mpsc;

use crate::{Error, types::system_time};

/// Events that wait for a slow reader before new ones are refused.
const BACKLOG: usize = 1024;

/// One event of a shim.
#[derive(Debug, Clone)]
pub struct Event {
    /// containerd namespace, as given in [`crate::Bootstrap`].
    pub namespace: String,
    /// `/tasks/exit` and so on.
    pub topic: String,
    pub at: SystemTime,
    pub kind: EventKind,
}

/// What happened. `id` is the container's; `exec_id` is empty (or equal to `id`, which is passed on
/// as empty) for the container's own process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    Create {
        id: String,
        pid: u32,
    },
    Start {
        id: String,
        pid: u32,
    },
    ExecAdded {
        id: String,
        exec_id: String,
    },
    ExecStarted {
        id: String,
        exec_id: String,
        pid: u32,
    },
    Exit {
        id: String,
        exec_id: String,
        pid: u32,
        code: u32,
        at: SystemTime,
    },
    Delete {
        id: String,
        exec_id: String,
        pid: u32,
        code: u32,
    },
    Oom {
        id: String,
    },
    /// A type this crate does not decode.
    Other {
        type_url: String,
    },
}

/// The receiving end; the endpoint is closed and its socket removed on drop.
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    server: Option<Server>,
    path: PathBuf,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Events {
    /// The next event; `None` never while the endpoint is served.
    pub async fn recv(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.server.take();
        // Best effort: a stale socket file is replaced by the next `serve_events` anyway.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves the events endpoint on a UNIX socket at `path` (mode 0600, a stale one is replaced).
///
/// Must be called in a tokio runtime, before the first [`crate::Shim::start`]: shims connect to it
/// as they start. Serve at the same path after a restart, so that running shims find it again.
///
/// # Errors
/// [`Error::Events`] if the socket can't be made.
pub fn serve_events(path: &Path) -> Result<Events, Error> {
    let failed = |source| Error::Events {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let listener = Listener::try_from(listener).map_err(failed)?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(create_events(Arc::new(Endpoint { sender })));
    let (started, path_buf) = (path.to_owned(), path.to_owned());
    // `start` only spawns the accept loop, but is an async fn: poll it in place, it never waits.
    futures_now(server.start())
        .unwrap_or_else(|| {
            Err(ttrpc::Error::Others(format!(
                "server at {} did not start at once",
                started.display()
            )))
        })
        .map_err(|e| failed(std::io::Error::other(e.to_string())))?;
    Ok(Events {
        receiver,
        server: Some(server),
        path: path_buf,
    })
}

/// Polls a future once; `None` if it isn't ready.
fn futures_now<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

struct Endpoint {
    sender: mpsc::Sender<Event>,
}

#[async_trait]
impl EventsService for Endpoint {
    async fn forward(
        &self,
        _context: &TtrpcContext,
        request: api::ForwardRequest,
    ) -> ttrpc::Result<api::Empty> {
        let envelope = request.envelope();
        let event = Event {
            namespace: envelope.namespace().to_owned(),
            topic: envelope.topic().to_owned(),
            at: system_time(envelope.timestamp.as_ref()),
            kind: decode(envelope.event()).map_err(|e| {
                ttrpc::Error::RpcStatus(ttrpc::get_status(
                    ttrpc::Code::INVALID_ARGUMENT,
                    format!("decode event {}: {e}", envelope.topic()),
                ))
            })?,
        };
        // Refusing beats waiting: the shim repeats a refused event, and a hung reader must not hang shims.
        self.sender.try_send(event).map_err(|e| {
            ttrpc::Error::RpcStatus(ttrpc::get_status(
                ttrpc::Code::UNAVAILABLE,
                format!("pass the event on: {e}"),
            ))
        })?;
        Ok(api::Empty::default())
    }
}

/// An event's `Any` in this crate's words.
fn decode(any: &Any) -> containerd_shim_protos::protobuf::Result<EventKind> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    let bytes = any.value.as_slice();
    Ok(match name {
        "containerd.events.TaskCreate" => {
            let e = TaskCreate::parse_from_bytes(bytes)?;
            EventKind::Create {
                id: e.container_id,
                pid: e.pid,
            }
        }
        "containerd.events.TaskStart" => {
            let e = TaskStart::parse_from_bytes(bytes)?;
            EventKind::Start {
                id: e.container_id,
                pid: e.pid,
            }
        }
        "containerd.events.TaskExecAdded" => {
            let e = TaskExecAdded::parse_from_bytes(bytes)?;
            EventKind::ExecAdded {
                id: e.container_id,
                exec_id: e.exec_id,
            }
        }
        "containerd.events.TaskExecStarted" => {
            let e = TaskExecStarted::parse_from_bytes(bytes)?;
            EventKind::ExecStarted {
                id: e.container_id,
                exec_id: e.exec_id,
                pid: e.pid,
            }
        }
        "containerd.events.TaskExit" => {
            let e = TaskExit::parse_from_bytes(bytes)?;
            EventKind::Exit {
                exec_id: exec_id(&e.container_id, e.id),
                id: e.container_id,
                pid: e.pid,
                code: e.exit_status,
                at: system_time(e.exited_at.as_ref()),
            }
        }
        "containerd.events.TaskDelete" => {
            let e = TaskDelete::parse_from_bytes(bytes)?;
            EventKind::Delete {
                exec_id: exec_id(&e.container_id, e.id),
                id: e.container_id,
                pid: e.pid,
                code: e.exit_status,
            }
        }
        "containerd.events.TaskOOM" => EventKind::Oom {
            id: TaskOOM::parse_from_bytes(bytes)?.container_id,
        },
        _ => EventKind::Other {
            type_url: any.type_url.clone(),
        },
    })
}

/// Events name the container's own process by the container's id.
fn exec_id(container: &str, id: String) -> String {
    if id == container { String::new() } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_own_exit_has_an_empty_exec_id() {
        let exit = TaskExit {
            container_id: "c".into(),
            id: "c".into(),
            pid: 7,
            exit_status: 143,
            ..TaskExit::default()
        };
        let any = Any {
            type_url: "containerd.events.TaskExit".into(),
            value: exit.write_to_bytes().unwrap(),
            ..Any::default()
        };
        let EventKind::Exit {
            id, exec_id, code, ..
        } = decode(&any).unwrap()
        else {
            panic!("not an exit");
        };
        assert_eq!((id.as_str(), exec_id.as_str(), code), ("c", "", 143));
    }

    #[test]
    fn an_unknown_event_is_passed_on_by_its_type() {
        let any = Any {
            type_url: "containerd.events.TaskPaused".into(),
            ..Any::default()
        };
        assert_eq!(
            decode(&any).unwrap(),
            EventKind::Other {
                type_url: "containerd.events.TaskPaused".into()
            }
        );
    }
}
