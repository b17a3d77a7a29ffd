//! Making and unmaking a pod's sandbox: network namespace, CNI attachment, shim, pause.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hpk_shim_client::{CreateRequest, Mount, Shim, Stdio, delete_binary, read_address};
use k8s_openapi::api::core::v1::Pod;
use nix::mount::{MsFlags, mount};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::group;
use super::paths::Paths;
use super::record::{PodRecord, SandboxRecord};
use super::runtime_class;
use crate::agent::Agent;
use crate::network::{self, Identity};
use crate::spec;
use crate::spec::limits::Limits;
use crate::{mounts, text};

#[derive(Debug, Error)]
pub enum Error {
    #[error("the pod is to end")]
    Unwanted,
    #[error("can't {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Spec(#[from] spec::Error),
    #[error(transparent)]
    Runtime(#[from] runtime_class::Error),
    #[error("failed to setup network for sandbox {sandbox:?}")]
    Network {
        sandbox: String,
        #[source]
        source: network::Error,
    },
    #[error(transparent)]
    Group(#[from] group::Error),
    #[error("failed to start sandbox {sandbox:?}: {}", text::of_shim(.error))]
    Shim {
        sandbox: String,
        error: Box<hpk_shim_client::Error>,
    },
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source,
    }
}

/// A sandbox that runs.
#[derive(Debug)]
pub struct Created {
    pub shim: Shim,
    pub pid: u32,
    pub ips: Vec<String>,
}

/// The record of a sandbox about to be made; to be saved before `create`.
pub fn intend(agent: &Agent, pod: &Pod, paths: &Paths, id: String) -> SandboxRecord {
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    SandboxRecord {
        bundle: paths.bundle(&id),
        netns: (!host_network).then(|| agent.network.netns_path(&id)),
        port_mappings: if host_network {
            Vec::new()
        } else {
            network::port_mappings(pod)
        },
        id,
        address: None,
        pid: 0,
        ips: Vec::new(),
        ready: false,
    }
}

/// Makes the sandbox: the network is attached while the shim starts.
pub async fn create(
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    paths: Paths,
    record: SandboxRecord,
    unwanted: CancellationToken,
) -> Result<Created, Error> {
    let runtime = &agent.config.args.runtime;
    runtime_class::check(&agent.reader, &pod, runtime).await?;
    write_files(&agent, &pod, &paths)?;
    let _turn = agent
        .turns
        .sandbox(&unwanted)
        .await
        .ok_or(Error::Unwanted)?;
    if let Some(netns) = &record.netns {
        agent
            .network
            .create_namespace(netns, &pod)
            .await
            .map_err(|source| network_error(&record, source))?;
    }
    let spec = pod.spec.clone().unwrap_or_default();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    group::ensure(&agent.cgroups, uid, Limits::of_pod(&spec))?;
    write_bundle(&agent, &pod, &record)?;
    let (network, shim) = tokio::join!(attach(&agent, &pod, &record), start(&agent, &record));
    let (ips, (shim, pid)) = (network?, shim?);
    write_hosts(&agent, &pod, &paths, &ips)?;
    Ok(Created { shim, pid, ips })
}

fn network_error(record: &SandboxRecord, source: network::Error) -> Error {
    Error::Network {
        sandbox: record.id.clone(),
        source,
    }
}

async fn attach(agent: &Agent, pod: &Pod, record: &SandboxRecord) -> Result<Vec<String>, Error> {
    match &record.netns {
        None => Ok(agent.node_ips().iter().map(ToString::to_string).collect()),
        Some(netns) => agent
            .network
            .attach(&record.id, netns, pod, &record.port_mappings)
            .await
            .map_err(|source| network_error(record, source)),
    }
}

async fn start(agent: &Agent, record: &SandboxRecord) -> Result<(Shim, u32), Error> {
    let failed = |error| Error::Shim {
        sandbox: record.id.clone(),
        error: Box::new(error),
    };
    let shim = Shim::start(&agent.bootstrap, &record.id, &record.bundle)
        .await
        .map_err(failed)?;
    let request = CreateRequest {
        id: record.id.clone(),
        bundle: record.bundle.clone(),
        rootfs: vec![Mount {
            kind: "bind".to_owned(),
            source: pause_rootfs(agent).to_string_lossy().into_owned(),
            options: vec!["rbind".to_owned(), "ro".to_owned()],
        }],
        stdio: Stdio::default(),
    };
    let pid = shim.create(request).await.map_err(failed)?;
    shim.start_task(&record.id, "").await.map_err(failed)?;
    Ok((shim, pid))
}

fn pause_rootfs(agent: &Agent) -> PathBuf {
    agent.config.args.root_dir.join("pause")
}

/// The folder every sandbox has as its root: pause and mount points. Made at the kubelet's start.
pub fn ensure_pause_rootfs(agent: &Agent) -> Result<(), Error> {
    let root = pause_rootfs(agent);
    for dir in ["dev", "proc", "sys", "etc", "tmp", "run"] {
        let path = root.join(dir);
        fs::create_dir_all(&path).map_err(file("create", &path))?;
    }
    // Sandboxes run as a user of their own; the way to their root must be open to it.
    for dir in [&agent.config.args.root_dir, &root] {
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir, open).map_err(file("set the mode of", dir))?;
    }
    let next = root.join(".pause.new");
    let binary = &agent.config.args.pause_binary;
    fs::copy(binary, &next).map_err(file("copy", binary))?;
    let runnable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&next, runnable).map_err(file("set the mode of", &next))?;
    let pause = root.join("pause");
    fs::rename(&next, &pause).map_err(file("replace", &pause))
}

fn write_bundle(agent: &Agent, pod: &Pod, record: &SandboxRecord) -> Result<(), Error> {
    let rootfs = record.bundle.join("rootfs");
    fs::create_dir_all(&rootfs).map_err(file("create", &rootfs))?;
    let view = spec::Sandbox {
        id: record.id.clone(),
        pid: 0,
        netns: record.netns.clone(),
    };
    let nodename = agent.names(pod).map_err(spec::Error::from)?.nodename;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let cgroup = group::of_container(uid, &record.id);
    let spec = spec::sandbox(pod, &view, &nodename, &agent.host, cgroup)?;
    let path = record.bundle.join("config.json");
    write_json(&path, &spec)
}

pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec(value).map_err(|error| file("write", path)(error.into()))?;
    fs::write(path, text).map_err(file("write", path))
}

/// hostname, resolv.conf and the common /dev/shm: all that doesn't need an address.
fn write_files(agent: &Agent, pod: &Pod, paths: &Paths) -> Result<(), Error> {
    let etc = paths.run.join("etc");
    fs::create_dir_all(&etc).map_err(file("create", &etc))?;
    let hostname = agent.names(pod).map_err(spec::Error::from)?.nodename;
    let resolv_conf = spec::files::resolv_conf(pod, &agent.resolver);
    for (name, text) in [
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", resolv_conf),
    ] {
        write_public(&paths.etc(name), &text)?;
    }
    let shm = paths.shm();
    fs::create_dir_all(&shm).map_err(file("create", &shm))?;
    if !mounts::is_mount_point(&shm).map_err(file("look at", &shm))? {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some("shm"),
            &shm,
            Some("tmpfs"),
            flags,
            Some("mode=1777,size=65536k"),
        )
        .map_err(|errno| file("mount a tmpfs on", &shm)(errno.into()))?;
    }
    Ok(())
}

fn write_hosts(agent: &Agent, pod: &Pod, paths: &Paths, ips: &[String]) -> Result<(), Error> {
    let names = agent.names(pod).map_err(spec::Error::from)?;
    let text = spec::files::hosts(pod, ips, &names, &agent.hosts_file);
    write_public(&paths.etc("hosts"), &text)
}

/// A file that every user of the pod may read, whatever the kubelet's umask.
fn write_public(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(file("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
        .map_err(file("set the mode of", path))
}

/// How long a shim may take to answer while it is taken down.
const TEARDOWN_LIMIT: Duration = Duration::from_secs(20);

/// Unmakes a sandbox and every container in it, whatever state they are in: each step is done even
/// if one before it failed, and may be done again. The first failure is returned.
pub async fn remove(
    agent: Arc<Agent>,
    paths: Paths,
    pod: PodRecord,
    record: SandboxRecord,
) -> Result<(), Error> {
    let mut containers: Vec<(String, PathBuf)> = pod
        .containers
        .values()
        .flat_map(|container| [&container.current, &container.previous])
        .flatten()
        .filter(|instance| !instance.bundle.as_os_str().is_empty())
        .map(|instance| (instance.id.clone(), instance.bundle.clone()))
        .collect();
    containers.push((record.id.clone(), record.bundle.clone()));
    let address = match &record.address {
        Some(address) => Some(address.clone()),
        None => read_address(&record.bundle).unwrap_or_default(),
    };
    let mut first_error = None;
    if record.bundle.exists() {
        let shim = end_shim(&agent, address.as_deref(), &containers, &record);
        if tokio::time::timeout(TEARDOWN_LIMIT, shim).await.is_err() {
            warn!(
                sandbox = record.id,
                "the shim doesn't answer; cleaning up after it"
            );
            delete_dead(&agent, &containers).await;
        }
    }
    if let Some(netns) = &record.netns {
        let identity = Identity {
            namespace: &pod.namespace,
            name: &pod.name,
            uid: &pod.uid,
        };
        if let Err(source) = agent
            .network
            .detach(&record.id, netns, &identity, &record.port_mappings)
            .await
        {
            first_error = Some(network_error(&record, source));
        }
    }
    for (id, bundle) in &containers {
        for path in [bundle, &paths.layer(id)] {
            if let Err(source) = mounts::remove_tree(path) {
                first_error.get_or_insert(file("remove", path)(source));
            }
        }
    }
    // An empty cgroup holds nothing that the pod's end should wait for; it goes with the job's.
    if let Err(error) = group::remove(&agent.cgroups, &pod.uid) {
        warn!(
            pod = pod.name,
            error = text::chain(&error),
            "a cgroup is left"
        );
    }
    let sub_paths = paths.sub_paths();
    if let Err(source) = mounts::remove_tree(&sub_paths) {
        first_error.get_or_insert(file("remove", &sub_paths)(source));
    }
    if let Err(source) = mounts::unmount_below(&paths.shm()) {
        first_error.get_or_insert(file("unmount", &paths.shm())(source));
    }
    first_error.map_or(Ok(()), Err)
}

/// Kills and deletes all containers, the sandbox last, and ends the shim.
async fn end_shim(
    agent: &Agent,
    address: Option<&str>,
    containers: &[(String, PathBuf)],
    record: &SandboxRecord,
) {
    let connected = match address {
        Some(address) => Shim::connect(address).await.ok(),
        None => None,
    };
    let Some(shim) = connected else {
        delete_dead(agent, containers).await;
        return;
    };
    for (id, _) in containers {
        end_container(&shim, id).await;
    }
    if let Err(error) = shim.shutdown(&record.id).await {
        debug!(
            sandbox = record.id,
            error = text::chain(&error),
            "can't shut the shim down"
        );
    }
}

/// Kills a container, waits for its end and deletes it. One the shim doesn't know is fine. False if
/// the shim is gone: then its `delete` command has to clean up, for which it needs the bundle.
pub async fn end_container(shim: &Shim, id: &str) -> bool {
    // A process that has ended is "not found" too, and its container is still to be deleted.
    let ended = matches!(shim.kill(id, "", 9, true).await, Err(error) if error.is_not_found());
    if !ended {
        let waited = tokio::time::timeout(Duration::from_secs(5), shim.wait(id, "")).await;
        if waited.is_err() {
            warn!(container = id, "doesn't end after SIGKILL");
        }
    }
    match shim.delete(id, "").await {
        Err(error) if error.is_gone() => return false,
        Err(error) if !error.is_not_found() => {
            debug!(
                container = id,
                error = text::chain(&error),
                "can't delete the container"
            );
        }
        _ => {}
    }
    true
}

/// For a shim that is dead: its own `delete` command cleans up what it left.
async fn delete_dead(agent: &Agent, containers: &[(String, PathBuf)]) {
    for (id, bundle) in containers {
        if !bundle.exists() {
            continue;
        }
        if let Err(error) = delete_binary(&agent.bootstrap, id, bundle).await {
            debug!(
                container = id,
                error = text::chain(&error),
                "shim delete failed"
            );
        }
    }
}
