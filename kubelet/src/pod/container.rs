//! Starting one container: environment, mounts, spec, bundle; then Create and Start in the shim.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hpk_images::overlay::make_volumes;
use hpk_shim_client::{CreateRequest, Mount, Shim, Stdio, TaskStatus};
use k8s_openapi::api::core::v1::{Container, Pod};
use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::group;
use super::paths::{self, Paths};
use super::record::SandboxRecord;
use super::sandbox::write_json;
use crate::agent::Agent;
use crate::env::{self, Objects, Reference};
use crate::events::Kind;
use crate::images::Ready;
use crate::spec::ids::Fitted;
use crate::spec::mounts::PodFiles;
use crate::spec::seccomp::{self, Wanted};
use crate::spec::{self, Inputs};
use crate::volumes::Mounted;
use crate::volumes::source::{self, SubPath};
use crate::{api, devices, text};

/// Why a container didn't start.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the pod is to end")]
    Unwanted,
    #[error(transparent)]
    Fetch(#[from] api::Error),
    #[error(transparent)]
    Env(#[from] env::Error),
    #[error(transparent)]
    User(#[from] hpk_images::user::Error),
    #[error(transparent)]
    Spec(#[from] spec::Error),
    #[error(transparent)]
    Device(#[from] devices::nodes::Error),
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}")]
    SubPath {
        container: String,
        volume: String,
        #[source]
        source: source::Error,
    },
    #[error("cannot load seccomp profile {path}")]
    Profile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "container {container:?} is to see the processes of container {target:?}, which doesn't run"
    )]
    Target { container: String, target: String },
    #[error("can't {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Bundle(#[from] super::sandbox::Error),
    #[error("failed to create container {container:?}: {}", text::of_shim(.error))]
    Create {
        container: String,
        error: Box<hpk_shim_client::Error>,
    },
    #[error("failed to start container {container:?}: {}", text::of_shim(.error))]
    Start {
        container: String,
        error: Box<hpk_shim_client::Error>,
    },
}

/// What the pod's status says of a failed start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The spec can't be honoured; nothing was made.
    Config,
    /// The node couldn't make it.
    Node,
    /// The runtime refused: counts as a run that ended.
    Runtime,
}

impl Error {
    pub fn blame(&self) -> Blame {
        match self {
            Error::Fetch(_)
            | Error::Env(_)
            | Error::User(_)
            | Error::Spec(_)
            | Error::Profile { .. }
            | Error::Target { .. }
            | Error::SubPath { .. } => Blame::Config,
            Error::File { .. } | Error::Bundle(_) | Error::Device(_) | Error::Unwanted => {
                Blame::Node
            }
            Error::Create { .. } | Error::Start { .. } => Blame::Runtime,
        }
    }

    /// For people.
    pub fn message(&self) -> String {
        text::chain(self)
    }
}

/// Everything a start needs; taken along by the task that does it.
#[derive(Debug, Clone)]
pub struct Start {
    pub pod: Arc<Pod>,
    pub container: Container,
    pub image: Arc<Ready>,
    pub volumes: Arc<Mounted>,
    pub sandbox: SandboxRecord,
    /// Whose processes it is to see, if it is an ephemeral container that says so.
    pub target: Option<Target>,
    pub paths: Paths,
    /// Cancelled when the pod is to end.
    pub unwanted: CancellationToken,
    pub id: String,
    pub attempt: u32,
    pub log: PathBuf,
}

/// A container of the same pod.
#[derive(Debug, Clone)]
pub struct Target {
    pub name: String,
    /// Of its run; none if it doesn't run.
    pub id: Option<String>,
}

/// Creates and starts the container; its pid.
pub async fn start(agent: &Agent, shim: &Shim, wanted: &Start) -> Result<u32, Error> {
    let objects = fetch(agent, &wanted.pod, &wanted.container).await?;
    let turn = agent.turns.container(&wanted.unwanted).await;
    let _turn = turn.ok_or(Error::Unwanted)?;
    let bundle = wanted.paths.bundle(&wanted.id);
    let beside = target_pid(shim, wanted).await?;
    let (rootfs, sub_paths) = write_bundle(agent, wanted, &objects, beside, &bundle)?;
    let started = match bind(&wanted.container, &sub_paths) {
        Ok(()) => create(agent, shim, wanted, bundle, rootfs).await,
        Err(error) => Err(error),
    };
    // The container has its own copies by now. What can't be undone goes with the sandbox.
    for part in &sub_paths {
        if let Err(error) = part.undo() {
            warn!(%error, target = %part.target.display(), "can't undo a subPath's bind");
        }
    }
    started
}

/// A process of the container whose processes this one is to see.
async fn target_pid(shim: &Shim, wanted: &Start) -> Result<Option<u32>, Error> {
    let Some(target) = &wanted.target else {
        return Ok(None);
    };
    let missing = || Error::Target {
        container: wanted.container.name.clone(),
        target: target.name.clone(),
    };
    let id = target.id.as_ref().ok_or_else(missing)?;
    match shim.state(id, "").await {
        Ok(state) if state.status == TaskStatus::Running => Ok(Some(state.pid)),
        Ok(_) => Err(missing()),
        Err(error) if error.is_not_found() => Err(missing()),
        Err(error) => Err(Error::Create {
            container: wanted.container.name.clone(),
            error: Box::new(error),
        }),
    }
}

fn bind(container: &Container, sub_paths: &[SubPath]) -> Result<(), Error> {
    for part in sub_paths {
        part.apply().map_err(|source| Error::SubPath {
            container: container.name.clone(),
            volume: part.name.clone(),
            source,
        })?;
    }
    Ok(())
}

async fn create(
    agent: &Agent,
    shim: &Shim,
    wanted: &Start,
    bundle: PathBuf,
    rootfs: Vec<Mount>,
) -> Result<u32, Error> {
    let terminal = wanted.container.tty.unwrap_or(false);
    let logger = logger_uri(agent, &wanted.log, terminal);
    let stdin = ensure_stdin(&wanted.container, &bundle)?;
    let request = CreateRequest {
        id: wanted.id.clone(),
        bundle,
        rootfs,
        stdio: Stdio {
            stdin,
            stdout: logger.clone(),
            stderr: if terminal { String::new() } else { logger },
            terminal,
        },
    };
    let container = &wanted.container.name;
    let failed = |error| Error::Create {
        container: container.clone(),
        error: Box::new(error),
    };
    let pid = shim.create(request).await.map_err(failed)?;
    if let Err(error) = shim.start_task(&wanted.id, "").await {
        // Created but not started: deleted, so that its mounts go.
        super::sandbox::end_container(shim, &wanted.id).await;
        return Err(Error::Start {
            container: container.clone(),
            error: Box::new(error),
        });
    }
    Ok(pid)
}

/// The FIFO for what attached callers type; empty for a container that wants no stdin.
fn ensure_stdin(container: &Container, bundle: &Path) -> Result<String, Error> {
    if container.stdin != Some(true) {
        return Ok(String::new());
    }
    let path = paths::stdin(bundle);
    match mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => Ok(path.to_string_lossy().into_owned()),
        Err(errno) => Err(Error::File {
            action: "create",
            path,
            source: errno.into(),
        }),
    }
}

/// `binary://` and the logger's arguments: containerd gives each key and value to it in argv.
fn logger_uri(agent: &Agent, log: &Path, terminal: bool) -> String {
    let args = &agent.config.args;
    format!(
        "binary://{}?path={}&max-size={}&max-files={}{}",
        args.logger.display(),
        query_escape(&log.to_string_lossy()),
        args.container_log_max_size,
        args.container_log_max_files,
        // Milliseconds; so that who is attached sees the prompt.
        if terminal { "&partial-after=20" } else { "" }
    )
}

fn query_escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

async fn fetch(agent: &Agent, pod: &Pod, container: &Container) -> Result<Objects, Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut objects = Objects {
        config_maps: BTreeMap::new(),
        secrets: BTreeMap::new(),
    };
    for reference in env::references(container) {
        match reference {
            Reference::ConfigMap(name) => {
                if let Some(map) = agent.reader.config_map(namespace, &name).await? {
                    objects.config_maps.insert(name, map);
                }
            }
            Reference::Secret(name) => {
                if let Some(secret) = agent.reader.secret(namespace, &name).await? {
                    objects.secrets.insert(name, secret);
                }
            }
        }
    }
    Ok(objects)
}

fn write_bundle(
    agent: &Agent,
    wanted: &Start,
    objects: &Objects,
    beside: Option<u32>,
    bundle: &Path,
) -> Result<(Vec<Mount>, Vec<SubPath>), Error> {
    let Start {
        pod,
        container,
        image,
        sandbox,
        paths,
        ..
    } = wanted;
    let services: Vec<_> = agent
        .services
        .state()
        .iter()
        .map(|service| service.as_ref().clone())
        .collect();
    let facts = agent.facts_for(&sandbox.ips);
    let env = env::plan(pod, container, &services, objects, &facts)?;
    let lookup = |name: &str| {
        let found = env.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone())
    };
    let image_user = image
        .config
        .config()
        .as_ref()
        .and_then(|config| config.user().clone())
        .unwrap_or_default();
    let asked = spec::process::user_to_resolve(pod, container, &image_user);
    let found = hpk_images::user::resolve(&image.lower, &asked)?;
    let user = spec::process::user(pod, container, found).map_err(spec::Error::from)?;
    let squash = agent.config.args.squash_ids;
    let fitted = spec::ids::fit(pod, container, user, &agent.host.ids, squash);
    let Fitted {
        user,
        pretend,
        is_stand_in,
        news,
    } = fitted.map_err(spec::Error::from)?;
    for (reason, message) in news {
        agent.recorder.pod(pod, Kind::Warning, reason, message);
    }

    let message = paths.termination_message(&container.name, wanted.attempt);
    create_file(&message, 0o666)?;
    create_parent(&wanted.log)?;
    let files = PodFiles {
        hosts: paths.etc("hosts"),
        hostname: paths.etc("hostname"),
        resolv_conf: paths.etc("resolv.conf"),
        shm: paths.shm(),
        termination_message: message,
        sub_paths: paths.sub_paths(),
    };
    let binds = spec::mounts::of_container(container, &files, &wanted.volumes, &lookup)
        .map_err(spec::Error::from)?;
    let names = agent.names(pod).map_err(spec::Error::from)?;
    let view = spec::Sandbox {
        id: sandbox.id.clone(),
        pid: sandbox.pid,
        netns: sandbox.netns.clone(),
    };
    let local;
    let seccomp = match seccomp::wanted(pod, container).map_err(spec::Error::from)? {
        Wanted::Unconfined => None,
        Wanted::Default => {
            let profile = agent.seccomp.as_ref();
            Some(profile.map_err(|why| spec::Error::from(seccomp::Error::NoDefault(why.clone())))?)
        }
        Wanted::Local(name) => {
            local = read_profile(&agent.config.args.seccomp_dir, &name)?;
            Some(&local)
        }
    };
    let pretending = pretend.then(|| {
        let asked = seccomp.cloned();
        asked.unwrap_or_else(seccomp::Profile::open).pretending()
    });
    let seccomp = pretending.as_ref().or(seccomp);
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let devices = agent.devices.nodes(uid, &container.name)?;
    let spec = spec::container(Inputs {
        pod,
        container,
        image: &image.config,
        user: &user,
        is_stand_in,
        env: &env,
        mounts: binds.mounts,
        nodename: &names.nodename,
        sandbox: &view,
        beside,
        host: &agent.host,
        devices,
        seccomp,
        cgroup: group::of_container(uid, &wanted.id),
        oom_group: group::kills_all_of_a_container(&agent.cgroups),
    })?;
    let rootfs = bundle.join("rootfs");
    create_dir(&rootfs)?;
    write_json(&bundle.join("config.json"), &spec)?;
    let layer = paths.layer(&wanted.id);
    let (upper, work) = (layer.join("upper"), layer.join("work"));
    create_dir(&upper)?;
    create_dir(&work)?;
    copy_root_mode(&image.lower, &upper)?;
    let config = image.config.config().as_ref();
    let volumes = config.and_then(|config| config.volumes().clone());
    let made = make_volumes(&image.lower, &upper, &volumes.unwrap_or_default());
    made.map_err(|source| Error::File {
        action: "make the image's volumes in",
        path: upper.clone(),
        source,
    })?;
    let rootfs = crate::images::rootfs_mounts(&image.lower, &upper, &work);
    Ok((rootfs, binds.sub_paths))
}

/// A profile of type Localhost.
fn read_profile(dir: &Path, name: &str) -> Result<seccomp::Profile, Error> {
    let path = dir.join(name);
    let text = fs::read(&path).map_err(|source| Error::Profile { path, source })?;
    let parsed = serde_json::from_slice(&text);
    let parsed = parsed.map_err(|source| seccomp::Error::Profile {
        name: name.to_owned(),
        source,
    });
    Ok(parsed.map_err(spec::Error::from)?)
}

/// The overlay's upper is the container's `/`: its owner and mode must be those of the image's.
fn copy_root_mode(lower: &Path, upper: &Path) -> Result<(), Error> {
    let copy = || {
        let root = fs::metadata(lower)?;
        std::os::unix::fs::chown(upper, Some(root.uid()), Some(root.gid()))?;
        fs::set_permissions(upper, root.permissions())
    };
    copy().map_err(|source| Error::File {
        action: "copy the image's root mode to",
        path: upper.to_owned(),
        source,
    })
}

fn create_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::File {
        action: "create",
        path: path.to_owned(),
        source,
    })
}

fn create_parent(path: &Path) -> Result<(), Error> {
    path.parent().map_or(Ok(()), create_dir)
}

fn create_file(path: &Path, mode: u32) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    create_parent(path)?;
    let made = fs::File::create(path)
        .and_then(|file| file.set_permissions(fs::Permissions::from_mode(mode)));
    made.map_err(|source| Error::File {
        action: "create",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_paths_survive_the_query_string() {
        assert_eq!(query_escape("/a b&c"), "/a%20b%26c");
    }
}
