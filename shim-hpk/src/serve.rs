//! The shim itself: from the inherited socket to the Shutdown call.
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    io,
    os::fd::{IntoRawFd, RawFd},
    path::Path,
    sync::Arc,
};

use containerd_shim::{
    Flags,
    asynchronous::ExitSignal,
    protos::{
        shim_async::{Task, create_task},
        ttrpc::asynchronous::{Server, Service as TtrpcService},
    },
};
use hpk_cgroup::hierarchies;
use hpk_pause::sys;
use hpk_userns::Mapped;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    apply::{programs::Programs, reaper::Reaper},
    error::Error,
    events::Events,
    service::Service,
};

/// Where `start` puts the listening socket.
const LISTENER: RawFd = 3;

/// Puts the listening socket where the shim expects it; for a forked child, integers only.
pub fn inherit_listener(socket: RawFd) -> io::Result<()> {
    // SAFETY: integers only. dup2 onto itself would leave close-on-exec set.
    let placed = unsafe {
        if socket == LISTENER {
            libc::fcntl(socket, libc::F_SETFD, 0)
        } else {
            libc::dup2(socket, LISTENER)
        }
    };
    if placed < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Serves until told to shut down.
pub fn serve(flags: Flags) -> Result<(), Error> {
    // What the caller had open isn't the shim's to hold.
    sys::close_on_exec_from(LISTENER).map_err(Error::system("mark descriptors close-on-exec"))?;
    let socket = sys::inherited(LISTENER).map_err(Error::system(
        "take the socket over from `start` (this program is run by containerd, not by hand)",
    ))?;
    let level = if flags.debug { "debug" } else { "info" };
    containerd_shim::logger::init(flags.debug, level, &flags.namespace, &flags.id).map_err(
        |e| Error::Invalid {
            field: "log".into(),
            why: e.to_string(),
        },
    )?;
    // One thread: a shim waits nearly always, and memory per pod is what counts.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("start the runtime"))?;
    let served = runtime.block_on(serve_until_shutdown(&flags, socket.into_raw_fd()));
    if let Err(e) = &served {
        log::error!("{e}");
    }
    let path = flags.socket.trim_start_matches("unix://");
    if let Err(e) = std::fs::remove_file(Path::new(path)) {
        log::warn!("remove {path}: {e}");
    }
    served
}

async fn serve_until_shutdown(flags: &Flags, socket: RawFd) -> Result<(), Error> {
    // Out of the caller's session and process group: a signal to those isn't meant for pods.
    if let Err(e) = nix::unistd::setsid() {
        log::debug!("start a session: {e}");
    }
    // Whose parent ends becomes the shim's child.
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0)
        .map_err(Error::system("become the orphans' parent"))?;
    ignore_signals().map_err(Error::system("listen to signals"))?;
    let reaper = Reaper::start().map_err(Error::system("listen to SIGCHLD"))?;
    let hierarchies = hierarchies::probe().unwrap_or_else(|e| {
        log::warn!("look for cgroups: {e}");
        Vec::new()
    });
    let ttrpc_address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let events = Events::start(ttrpc_address, flags.namespace.clone());
    let exit = Arc::new(ExitSignal::default());
    let service = Service::new(
        flags.namespace.clone(),
        Programs::find(),
        hierarchies,
        Mapped::here()?,
        events.clone(),
        reaper,
        Arc::clone(&exit),
    );
    let failed = |e| Error::Container(format!("serve the Task API: {e}"));
    // SAFETY: the listening socket was inherited for this, and nobody else here has it.
    let mut server = unsafe { Server::new().add_unix_listener(socket) }
        .map_err(failed)?
        .register_service(both_versions(Arc::new(service)));
    server.start().await.map_err(failed)?;
    exit.wait().await;
    server.shutdown().await.map_err(failed)?;
    events.flush().await;
    Ok(())
}

/// v3 is a renamed copy of v2 (containerd's docs/runtime-v2.md); the crate has v3.
fn both_versions(task: Arc<dyn Task + Send + Sync>) -> HashMap<String, TtrpcService> {
    let v2 = create_task(Arc::clone(&task))
        .into_iter()
        .map(|(name, service)| (name.replace(".v3.", ".v2."), service));
    create_task(task).into_iter().chain(v2).collect()
}

/// A shim ends by Shutdown only; a stray SIGTERM must not take the pod's exit codes with it. Handled,
/// not ignored: an ignored signal would be ignored in the loggers too.
fn ignore_signals() -> io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut stream = signal(kind)?;
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                log::warn!("signal {} ignored", kind.as_raw_value());
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    #[async_trait::async_trait]
    impl Task for Nothing {}

    #[test]
    fn the_task_api_is_served_under_both_its_names() {
        let services = both_versions(Arc::new(Nothing));
        let mut names: Vec<_> = services.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["containerd.task.v2.Task", "containerd.task.v3.Task"]
        );
        assert_eq!(
            services[names[0]].methods.len(),
            services[names[1]].methods.len()
        );
    }
}
