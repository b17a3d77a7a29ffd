//! `start` and `delete`, and the server's own beginning and end.

use std::{os::unix::net::UnixStream, path::PathBuf, sync::Arc, time::SystemTime};

use async_trait::async_trait;
use containerd_shim::{
    Config, DeleteResponse, Flags, StartOpts,
    asynchronous::{ExitSignal, spawn},
    protos::protobuf::well_known_types::timestamp::Timestamp,
    publisher::RemotePublisher,
};

use crate::{
    apply::{programs::Programs, reaper::Reaper},
    cleanup, config,
    error::Error,
    events::Events,
    service::Service,
};

/// What a killed container's exit is reported as: SIGKILL.
const KILLED: u32 = 128 + libc::SIGKILL as u32;

/// One run of the binary.
pub struct Shim {
    namespace: String,
    bundle: PathBuf,
    exit: Arc<ExitSignal>,
}

#[async_trait]
impl containerd_shim::asynchronous::Shim for Shim {
    type T = Service;

    async fn new(_runtime_id: &str, flags: &Flags, _config: &mut Config) -> Self {
        let bundle = if flags.bundle.is_empty() {
            ".".into()
        } else {
            PathBuf::from(&flags.bundle)
        };
        Self {
            namespace: flags.namespace.clone(),
            bundle,
            exit: Arc::default(),
        }
    }

    async fn start_shim(&mut self, mut opts: StartOpts) -> containerd_shim::Result<String> {
        let here = PathBuf::from(".");
        let grouping = config::grouping(&config::load(&here)?, &opts.id);
        if let Ok(directory) = std::env::var("HPK_SHIM_SOCKET_DIR") {
            opts.socket_dir.get_or_insert(directory);
        }
        let address = opts.socket_address(&grouping);
        // The pod's shim may be there already; asking its socket is cheaper than a process.
        let socket = address.trim_start_matches("unix://");
        let address = if UnixStream::connect(socket).is_ok() {
            address
        } else {
            spawn(opts, &grouping, Vec::new()).await?
        };
        std::fs::write("address", &address).map_err(|source| Error::File {
            action: "write",
            path: "address".into(),
            source,
        })?;
        Ok(address)
    }

    async fn delete_shim(&mut self) -> containerd_shim::Result<DeleteResponse> {
        let pid = cleanup::clean(&self.bundle)?;
        Ok(DeleteResponse {
            pid,
            exit_status: KILLED,
            exited_at: Some(timestamp(SystemTime::now())).into(),
            ..Default::default()
        })
    }

    async fn wait(&mut self) {
        self.exit.wait().await;
    }

    async fn create_task_service(&self, publisher: RemotePublisher) -> Service {
        // Out of the caller's session and process group: a signal to those isn't meant for pods.
        let _ = nix::unistd::setsid();
        let events = Events::start(publisher, self.namespace.clone());
        let reaper = Reaper::start().unwrap_or_else(|e| {
            // Without it no end would ever be told: better no shim than that.
            log::error!("listen to SIGCHLD: {e}");
            std::process::exit(1);
        });
        let exit = Arc::clone(&self.exit);
        Service::new(
            self.namespace.clone(),
            Programs::find(),
            events,
            reaper,
            exit,
        )
    }
}

/// A time as protobuf has it.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp {
        seconds: since.as_secs() as i64,
        nanos: since.subsec_nanos() as i32,
        ..Default::default()
    }
}
