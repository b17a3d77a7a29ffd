//! A host's part: the node-local folder, the instance, its helpers; watching over them; the end.
//!
//! - `stage`, `spec`: the folder, and what is in it for the bubble
//! - `instance`, `binds`, `turn`: Apptainer
//! - `helpers`: programs of the host that the bubble needs: `uplink` (pasta or slirp4netns),
//!   `overlay` (where it runs on the host), and `crate::forward` (the ports)
//! - `watch`: while the bubble runs

mod binds;
mod helpers;
mod instance;
mod overlay;
mod spec;
mod stage;
mod turn;
mod uplink;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use hpk_userns::Ids;
use tokio::net::UnixListener;

use crate::bubble::spec::{BubbleSpec, OverlayMode};
use crate::cluster::{Cluster, Folder, Node};
use crate::forward::Forward;
use crate::local::{self, OpenFolder};
use crate::settings::{API_PORT, ETCD_PORT, OVERLAY_PORT};
use crate::{Role, attempts, cgroups, doctor, gpus, link, own_path, ports, settings, sweep};
use binds::Sources;
use helpers::{Part, Plan};
use hpk_uplink::{Addresses, Program, UdpForward, Uplink};
use instance::Instance;
use overlay::Overlay;

/// `hpk-bubble ID ROLE`, on each host by srun.
pub async fn run(id: &str, role: Role) -> Result<ExitCode> {
    let folder = Folder::of(&settings::hpk_home()?, id);
    let Err(error) = run_bubble(id, role, &folder).await else {
        return Ok(ExitCode::SUCCESS);
    };
    let host = node_name().unwrap_or_else(|_| "a host".into());
    // `launch` says it as the job's last line.
    folder
        .write_cause(&format!("{host}: {error:#}"))
        .with_context(|| format!("{host}: {error:#}"))?;
    Ok(ExitCode::FAILURE)
}

/// Slurm's name of this host.
fn node_name() -> Result<String> {
    match std::env::var("SLURMD_NODENAME") {
        Ok(name) => Ok(name),
        Err(_) => Ok(nix::unistd::gethostname()
            .context("asking for this host's name")?
            .to_string_lossy()
            .into_owned()),
    }
}

async fn run_bubble(id: &str, role: Role, folder: &Folder) -> Result<()> {
    let mut stop = watch::StopSignals::catch()?;
    // So that Slurm finds the instance among this step's processes, and it can't escape.
    nix::sys::prctl::set_child_subreaper(true).context("becoming a sub-reaper")?;
    let cluster = folder.read()?;
    let node = cluster.node(&node_name()?)?.clone();
    let controller = match role {
        Role::Controller => true,
        Role::Node | Role::Clean => false,
        Role::Auto => node.index == 1,
    };
    doctor::require_essentials()?;
    cgroups::sweep()?;
    if let Err(error) = sweep::sweep_local(&settings::hpk_home()?, &node.name) {
        eprintln!("hpk: {}: what earlier jobs left: {error:#}", node.name);
    }
    // What an earlier run of this cluster left.
    local::remove_recorded(folder, &node.name)?;
    let local = local::make(folder, id, &node.name, &settings::local_parent())?;
    let bubble = Bubble {
        folder,
        cluster: &cluster,
        node: &node,
        controller,
        local: &local,
    };
    let watched = match cgroups::enter(id) {
        Ok(()) => bubble.start_and_watch(&mut stop).await,
        Err(error) => Err(error),
    };
    attempts::all([
        watched,
        local::remove_recorded(folder, &node.name),
        cgroups::leave(id),
    ])
}

/// `hpk-bubble ID clean`: what a killed predecessor left on this host.
pub fn clean(id: &str) -> Result<ExitCode> {
    let folder = Folder::of(&settings::hpk_home()?, id);
    let cleaned = local::clean(&folder, id, &node_name()?, &settings::local_parent());
    attempts::all([cleaned, cgroups::sweep()])?;
    Ok(ExitCode::SUCCESS)
}

struct Bubble<'a> {
    folder: &'a Folder,
    cluster: &'a Cluster,
    node: &'a Node,
    controller: bool,
    local: &'a Path,
}

impl Bubble<'_> {
    async fn start_and_watch(&self, stop: &mut watch::StopSignals) -> Result<()> {
        stage::make_folders(self.local)?;
        let addresses = Addresses {
            network: hpk_uplink::routes::uplink_network(&hpk_uplink::routes::of_this_host()?)
                .context("every network that the uplink could use is one of the host's own")?,
        };
        let spec = self.spec()?;
        stage::fill(
            self.local,
            self.folder,
            self.cluster,
            self.node,
            &spec,
            addresses.dns(),
        )?;
        let listener = self.listen()?;
        let instance = self.start_instance()?;
        let result = async {
            let plan = self.plan(&spec, addresses, instance.init.pid).await?;
            let watch = watch::Watch {
                cluster: self.cluster,
                node: &self.node.name,
                instance: &instance,
                plan: &plan,
            };
            watch.run(listener, stop).await
        }
        .await;
        instance.end().await;
        result
    }

    /// What the bubble needs of programs on the host; `pid`: its init.
    async fn plan(&self, spec: &BubbleSpec, addresses: Addresses, pid: i32) -> Result<Plan> {
        let path = settings::search_path();
        Ok(Plan {
            uplink: Uplink {
                program: Program::find(&path)?,
                addresses,
                forward: match spec.overlay {
                    OverlayMode::Host => None,
                    OverlayMode::Kernel { udp_port } => Some(UdpForward {
                        host: udp_port,
                        inside: OVERLAY_PORT,
                    }),
                },
                pid,
                api_socket: self.local.join("slirp.sock"),
                ends_with_stdin: false,
            },
            overlay: match spec.overlay {
                OverlayMode::Host => Some(Overlay::find(spec, pid, self.local, &path)?),
                OverlayMode::Kernel { .. } => None,
            },
            forwards: self.forwards(pid).await?,
            logs: self.local.join("logs"),
        })
    }

    /// The ways from the host's ports into the bubble.
    async fn forwards(&self, pid: i32) -> Result<Vec<(Part, Forward)>> {
        if !self.controller {
            return Ok(Vec::new());
        }
        let held = ports::take(self.cluster.ports, self.cluster.handover.as_deref()).await?;
        let forward = |part, listener, port| {
            let forward = Forward {
                listener,
                pid,
                port,
            };
            (part, forward)
        };
        Ok(vec![
            forward(Part::ApiServerPort, held.apiserver, API_PORT),
            forward(Part::EtcdPort, held.etcd, ETCD_PORT),
        ])
    }

    fn listen(&self) -> Result<UnixListener> {
        let folder = OpenFolder::of(self.local)?;
        UnixListener::bind(folder.join(link::SOCKET))
            .with_context(|| format!("listening on {}", self.local.join(link::SOCKET).display()))
    }

    fn start_instance(&self) -> Result<Instance> {
        let ids = Ids::of_this_user(&settings::search_path())?;
        if let Ids::Single { why } = &ids {
            println!(
                "hpk: {}: single-id mode, in which pods run as root alone: {why} (docs/single-id.md)",
                self.node.name
            );
        }
        let own = own_path()?;
        let hpk_home = settings::hpk_home()?;
        let home = settings::home()?;
        let apptainer = settings::apptainer();
        let image = &self.cluster.image;
        ensure!(
            image.exists(),
            "the bubble's image {} is not to be seen on this host: it has to lie on a file system that the hosts share",
            image.display()
        );
        let short = format!("bubble{}", self.node.index);
        instance::Start {
            apptainer: &hpk_uplink::find_program(&apptainer, &settings::search_path())
                .with_context(|| format!("{apptainer} is not found"))?,
            image,
            binds: &binds::plan_binds(&Sources {
                local: self.local,
                home: &home,
                hpk_home: &hpk_home,
                own_program: &own,
                trust_store: stage::trust_store().as_deref(),
                programs: stage::dev_programs(&own),
            }),
            host_name: &self.node.name,
            ids: &ids,
            drivers: &gpus::driver_options(Path::new("/dev")),
            pid_file: &self.local.join("instance.pid"),
            names: &[short.clone(), format!("{short}-{}", self.cluster.id)],
            turn: &hpk_home
                .join("hosts")
                .join(format!("{}.lock", self.node.name)),
        }
        .run()
    }
}
