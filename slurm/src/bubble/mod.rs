//! The part inside a bubble, started by the image's start script: brings the node's daemons up in
//! order, keeps them running, and ends the bubble when the host says so or has gone.
//!
//! - `spec`: what the host says
//! - `daemons`: command lines
//! - `order`: what starts after what, with `etcd` and `api`
//! - `volumes`: the default StorageClass
//! - `process`, `reaper`: keeping daemons running
//! - `uplink`: what a new uplink asks for
//! - `end`: ending

mod api;
mod daemons;
mod end;
mod etcd;
mod order;
mod process;
mod reaper;
pub mod spec;
mod uplink;
mod volumes;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::files;
use crate::link::{self, Report, Sender};
use crate::settings::BUBBLE_ROOT;
pub use daemons::{overlay_options, proxies_by_nftables};
use order::Order;
use process::{Event, Supervisor};
use reaper::Reaper;
use spec::BubbleSpec;

/// What the pods get when nobody says how much: Slurm has sent its SIGTERM to all at once.
const GRACE: Duration = Duration::from_secs(8);

pub async fn supervise() -> Result<ExitCode> {
    let began = Instant::now();
    let root = Path::new(BUBBLE_ROOT);
    let logs = root.join("logs");
    let result = match read_spec(root) {
        Ok(spec) => run(&spec, &logs, began).await,
        Err(error) => Err(error),
    };
    if let Err(error) = &result {
        // The instance's own output is lost: the host looks here.
        let _ = std::fs::write(logs.join("supervise.log"), format!("{error:#}\n"));
    }
    end::power_off()?;
    result.map(|()| ExitCode::SUCCESS)
}

fn read_spec(root: &Path) -> Result<BubbleSpec> {
    let path = root.join(spec::FILE);
    serde_json::from_str(&files::read(&path)?).with_context(|| {
        format!(
            "{} is not as the host's hpk-bubble writes it",
            path.display()
        )
    })
}

/// Why the bubble ends.
enum Ending {
    /// The host asked, or Slurm did, or the host's part has gone.
    Asked(Duration),
    Failed(String),
}

async fn run(spec: &BubbleSpec, logs: &Path, began: Instant) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    // Orphans of daemons come here, so that none is lost to the end.
    nix::sys::prctl::set_child_subreaper(true).context("becoming a sub-reaper")?;
    // The limit that is there does too, for a small cluster.
    let _ = files::raise_open_limit();
    make_root_bindable()?;
    let socket = Path::new(BUBBLE_ROOT).join(link::SOCKET);
    let stream = UnixStream::connect(&socket)
        .await
        .with_context(|| format!("connecting to the host's {}", socket.display()))?;
    let (mut orders, mut reports) = link::split(stream);
    let (supervisor, mut events) = Supervisor::new(Reaper::start()?, logs.to_owned());
    let (queue, mut queued) = mpsc::unbounded_channel();
    let order = Order {
        spec,
        supervisor: &supervisor,
        reports: queue,
        began,
    };
    let mut starting = std::pin::pin!(order.run());
    let mut started = false;
    let ending = loop {
        tokio::select! {
            result = &mut starting, if !started => match result {
                Ok(()) => started = true,
                Err(error) => break Ending::Failed(format!("{error:#}")),
            },
            Some(report) = queued.recv() => send(&mut reports, &report).await,
            Some(event) = events.recv() => match event {
                Event::Restarted(text) => send(&mut reports, &Report::Restarted { text }).await,
                Event::Fatal(cause) => break Ending::Failed(cause),
            },
            order = orders.next::<link::Order>() => match order {
                Ok(Some(link::Order::UplinkRestarted)) => {
                    tokio::spawn(uplink::close_connections(supervisor.clone()));
                }
                Ok(Some(link::Order::Stop { grace_seconds })) => {
                    break Ending::Asked(Duration::from_secs(grace_seconds));
                }
                // No one is left to remove the host's side in time: be quick.
                Ok(None) | Err(_) => break Ending::Asked(Duration::from_secs(2)),
            },
            _ = terminate.recv() => break Ending::Asked(GRACE),
        }
    };
    let grace = match &ending {
        Ending::Asked(grace) => *grace,
        Ending::Failed(cause) => {
            let cause = cause.clone();
            send(&mut reports, &Report::Failed { cause }).await;
            GRACE
        }
    };
    end::end_processes(&supervisor, grace).await;
    let kept = end::keep_logs(logs, &spec.logs);
    end::remove_files();
    kept
}

async fn send(reports: &mut Sender, report: &Report) {
    // If the host has gone, the end of the link says so.
    let _ = reports.send(report).await;
}

/// Apptainer makes the instance's root unbindable; a pod's hostPath may lie on it.
fn make_root_bindable() -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE, none).context("making the root mount private")
}
