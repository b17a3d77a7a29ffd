//! A host's part: the node-local folder, the instance, the uplink; watching over them; the end.
//!
//! - `stage`: the folder and what is in it
//! - `instance`: Apptainer
//! - `uplink`: pasta or slirp4netns
//! - `overlay`: the overlay's daemon, where it runs on the host
//! - `routes`: which networks the host uses itself
//! - `watch`: while the bubble runs

pub mod instance;
pub mod overlay;
pub mod routes;
pub mod stage;
pub mod uplink;
mod watch;

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use tokio::net::UnixListener;

use crate::allocation::{Grant, variables};
use crate::bubble::spec::{BubbleSpec, OverlayMode};
use crate::cluster::{Cluster, Folder, Node};
use crate::settings::{API_PORT, ETCD_PORT, OVERLAY_PORT};
use crate::{Role, doctor, files, launch, link, own_path, ports, settings, sweep, userns};
use instance::{Instance, Sources};
use overlay::Overlay;
use uplink::{Addresses, Forward, Program, Protocol, Uplink};

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
    if let Err(error) = sweep::sweep_local() {
        eprintln!("hpk: {}: what earlier jobs left: {error:#}", node.name);
    }
    let local = settings::local_dir(id);
    stage::make_local_dir(&local)?;
    let bubble = Bubble {
        folder,
        cluster: &cluster,
        node: &node,
        controller,
        local: &local,
    };
    let watched = bubble.start_and_watch(&mut stop).await;
    let removed = userns::remove_tree(&local);
    watched.and(removed)
}

/// `hpk-bubble ID clean`: what a killed predecessor left on this host.
pub fn clean(id: &str) -> Result<ExitCode> {
    userns::remove_tree(&settings::local_dir(id))?;
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
        let path = settings::search_path();
        let apptainer = settings::apptainer();
        let apptainer = files::find_program(&apptainer, &path)
            .with_context(|| format!("{apptainer} is not found"))?;
        let table = files::read(Path::new("/proc/net/route"))?;
        let addresses = Addresses {
            network: routes::uplink_network(&routes::parse(&table))
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
        let instance = self.start_instance(&apptainer)?;
        let result = async {
            if self.controller {
                ports::release(&self.cluster.id)?;
            }
            let uplink = Uplink {
                program: Program::find(&path)?,
                addresses,
                forwards: self.forwards(&spec),
                pid: instance.init.pid,
                local: self.local.to_owned(),
            };
            let overlay = self.overlay(&spec, instance.init.pid, &path)?;
            let watch = watch::Watch {
                overlay: overlay.as_ref(),
                cluster: self.cluster,
                node: &self.node.name,
                instance: &instance,
                uplink: &uplink,
            };
            watch.run(listener, stop).await
        }
        .await;
        instance.end().await;
        result
    }

    fn spec(&self) -> Result<BubbleSpec> {
        let home = settings::hpk_home()?;
        let controller_name = &self.cluster.controller()?.name;
        let (host_ip, etcd) = if self.controller {
            (
                self.cluster.controller_address,
                format!("https://127.0.0.1:{ETCD_PORT}"),
            )
        } else {
            let towards = self.cluster.controller_address.to_string();
            (
                launch::own_address(Some(&towards))?,
                self.cluster.etcd_url(),
            )
        };
        Ok(BubbleSpec {
            cluster: self.cluster.id.clone(),
            node: self.node.name.clone(),
            controller: self.controller,
            nodes: self
                .cluster
                .nodes
                .iter()
                .map(|node| node.name.clone())
                .collect(),
            host_ip,
            subnet: self.node.subnet,
            network: self.cluster.network.clone(),
            etcd,
            api: stage::api_url(self.cluster, self.controller),
            vni: self.cluster.vni,
            overlay_port: ports::free_overlay_port()?,
            overlay_mode: self.overlay_mode()?,
            link_mtu: stage::link_mtu(host_ip),
            grant: Grant::parse(&variables())?,
            labels: labels(self.controller, &self.cluster.id, controller_name),
            store: std::env::var_os("HPK_STORE").map_or_else(|| home.join("store"), PathBuf::from),
            registries: home.join("registries.yaml"),
            logs: self.folder.logs(&self.node.name),
            proxies: proxies(self.cluster),
        })
    }

    fn overlay_mode(&self) -> Result<OverlayMode> {
        let (mode, reason) = overlay::mode()?;
        if let Some(reason) = reason {
            println!(
                "hpk: {}: the overlay runs in mode kernel, which is slower: {reason}",
                self.node.name
            );
        }
        Ok(mode)
    }

    /// The overlay's daemon, where it is the host's to run.
    fn overlay(&self, spec: &BubbleSpec, pid: i32, path: &str) -> Result<Option<Overlay>> {
        if spec.overlay_mode == OverlayMode::Kernel {
            return Ok(None);
        }
        let beside = own_path()?.with_file_name("hpk-net-daemon");
        let program = files::find_program(&beside.display().to_string(), path)
            .or_else(|| files::find_program("hpk-net-daemon", path))
            .with_context(|| format!("{} is missing (HPK_OVERLAY=host)", beside.display()))?;
        Ok(Some(Overlay {
            program,
            spec: spec.clone(),
            pid,
            local: self.local.to_owned(),
        }))
    }

    fn forwards(&self, spec: &BubbleSpec) -> Vec<Forward> {
        let tcp = |host, bubble| Forward {
            protocol: Protocol::Tcp,
            host,
            bubble,
        };
        let mut forwards = Vec::new();
        if self.controller {
            forwards.push(tcp(self.cluster.ports.apiserver, API_PORT));
            forwards.push(tcp(self.cluster.ports.etcd, ETCD_PORT));
        }
        if spec.overlay_mode == OverlayMode::Kernel {
            forwards.push(Forward {
                protocol: Protocol::Udp,
                host: spec.overlay_port,
                bubble: OVERLAY_PORT,
            });
        }
        forwards
    }

    /// Binds through the folder's descriptor: a socket's path has room for 107 bytes only.
    fn listen(&self) -> Result<UnixListener> {
        let folder = std::fs::File::open(self.local)
            .with_context(|| format!("opening {}", self.local.display()))?;
        let path = format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), link::SOCKET);
        UnixListener::bind(&path)
            .with_context(|| format!("listening on {}", self.local.join(link::SOCKET).display()))
    }

    fn start_instance(&self, apptainer: &Path) -> Result<Instance> {
        let own = own_path()?;
        let hpk_home = settings::hpk_home()?;
        let home = settings::home()?;
        let image = settings::find_image(&own, &hpk_home)?;
        let trust_store = stage::trust_store();
        let binds = instance::plan_binds(&Sources {
            local: self.local,
            home: &home,
            hpk_home: &hpk_home,
            own_program: &own,
            trust_store: trust_store.as_deref(),
            programs: stage::dev_programs(&own),
        });
        let pid_file = self.local.join("instance.pid");
        let short = format!("bubble{}", self.node.index);
        let names = [short.clone(), format!("{short}-{}", self.cluster.id)];
        Instance::start(
            apptainer,
            &names,
            |name| instance::start_arguments(&binds, &self.node.name, &pid_file, &image, name),
            &pid_file,
        )
    }
}

fn labels(controller: bool, id: &str, controller_name: &str) -> Vec<(String, String)> {
    let mut labels = vec![
        ("hpk.io/cluster".to_owned(), id.to_owned()),
        (
            "hpk.io/controller-host".to_owned(),
            controller_name.to_owned(),
        ),
    ];
    if controller {
        labels.push(("hpk.io/controller".to_owned(), "true".to_owned()));
    }
    labels
}

/// The host's proxy settings; the cluster's own addresses never go through a proxy.
fn proxies(cluster: &Cluster) -> Vec<(String, String)> {
    let mut list = Vec::new();
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        if let Ok(value) = std::env::var(name) {
            list.push((name.to_owned(), value));
        }
    }
    let own = std::env::var("no_proxy").or_else(|_| std::env::var("NO_PROXY"));
    let network = &cluster.network;
    let mut direct = format!(
        "localhost,127.0.0.1,{},{},{},.{}",
        cluster.controller_address, network.pods, network.services, network.domain
    );
    if let Ok(own) = own {
        direct = format!("{own},{direct}");
    }
    if !list.is_empty() {
        list.push(("no_proxy".into(), direct.clone()));
        list.push(("NO_PROXY".into(), direct));
    }
    list
}
