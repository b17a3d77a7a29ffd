//! Puts a pod's volumes in place, and refreshes those that come from the API.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use hpk_userns::Mapped;
use k8s_openapi::api::core::v1::Pod;
use thiserror::Error;

use super::payload::{self, Fetched, Need};
use super::plan::{self, Kind, Planned};
use super::{atomic, claim, empty_dir, host_path, ownership};
use crate::api::{self, Reader};
use crate::env::Facts;
use crate::events::Recorder;
use crate::images::{self, Images, Witness};

/// Volume name → where it is on the node.
pub type Mounted = BTreeMap<String, Source>;

/// Where a volume's content is.
#[derive(Debug, Clone)]
pub struct Source {
    /// A folder or a file.
    pub path: PathBuf,
    /// Whatever its mounts say.
    pub read_only: bool,
    /// The image that it is, in hand until the pod's record names it.
    pub image: Option<images::Ready>,
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self {
            path,
            read_only: false,
            image: None,
        }
    }
}

/// Where one pod's volumes live.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// On the node's disk: emptyDir.
    pub disk: PathBuf,
    /// In memory, and in a folder that only the kubelet's user can enter: all that comes from the
    /// API, secrets among it.
    pub memory: PathBuf,
}

/// Where volumes come from that are not of the node.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    pub reader: &'a Reader,
    pub images: &'a Images,
    pub recorder: &'a Recorder,
    /// Owners that files can have.
    pub ids: &'a Mapped,
    /// Told of the images that are pulled.
    pub witness: &'a (dyn Fn(&str) -> Box<dyn Witness> + Sync),
}

/// Why a volume can't be had; the worker says so in a FailedMount event and tries again.
#[derive(Debug, Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {}", chain(.source))]
pub struct MountError {
    pub volume: String,
    #[source]
    pub source: Cause,
}

fn chain(cause: &Cause) -> String {
    crate::text::chain(cause)
}

#[derive(Debug, Error)]
pub enum Cause {
    #[error("{0} volumes are not supported by hpk-kubelet")]
    Unsupported(&'static str),
    #[error(transparent)]
    Api(#[from] api::Error),
    #[error(transparent)]
    Payload(#[from] payload::Error),
    #[error(transparent)]
    Atomic(#[from] atomic::Error),
    #[error(transparent)]
    HostPath(#[from] host_path::Error),
    #[error(transparent)]
    EmptyDir(#[from] empty_dir::Error),
    #[error(transparent)]
    Claim(#[from] claim::Error),
    #[error(transparent)]
    Image(#[from] images::Error),
    #[error("can't give {path} to group {group}")]
    Ownership {
        path: PathBuf,
        group: u32,
        #[source]
        source: io::Error,
    },
}

/// All volumes of the pod, or the first that can't be had. Idempotent.
pub async fn mount_all(
    sources: &Sources<'_>,
    pod: &Pod,
    facts: &Facts,
    dirs: &Dirs,
) -> Result<Mounted, MountError> {
    let planned = pod.spec.as_ref().map(plan::plan).unwrap_or_default();
    let mut mounted = Mounted::new();
    for volume in &planned {
        let path = mount_one(sources, pod, facts, dirs, volume).await?;
        mounted.insert(volume.name.clone(), path);
    }
    Ok(mounted)
}

/// Fetches what comes from the API again and writes what changed.
pub async fn refresh(
    sources: &Sources<'_>,
    pod: &Pod,
    facts: &Facts,
    dirs: &Dirs,
) -> Result<(), MountError> {
    let planned = pod.spec.as_ref().map(plan::plan).unwrap_or_default();
    for volume in planned.iter().filter(|volume| volume.is_payload()) {
        mount_one(sources, pod, facts, dirs, volume).await?;
    }
    Ok(())
}

/// Whether any of the pod's volumes may change while it runs.
pub fn has_payload(pod: &Pod) -> bool {
    let planned = pod.spec.as_ref().map(plan::plan).unwrap_or_default();
    planned.iter().any(Planned::is_payload)
}

async fn mount_one(
    sources: &Sources<'_>,
    pod: &Pod,
    facts: &Facts,
    dirs: &Dirs,
    volume: &Planned,
) -> Result<Source, MountError> {
    provide(sources, pod, facts, dirs, volume)
        .await
        .map_err(|source| MountError {
            volume: volume.name.clone(),
            source,
        })
}

async fn provide(
    sources: &Sources<'_>,
    pod: &Pod,
    facts: &Facts,
    dirs: &Dirs,
    volume: &Planned,
) -> Result<Source, Cause> {
    let group = fs_group(pod, sources.ids);
    match &volume.kind {
        Kind::Unsupported(kind) => Err(Cause::Unsupported(kind)),
        Kind::HostPath(source) => {
            let path = PathBuf::from(&source.path);
            host_path::ensure(&path, source.type_.as_deref().unwrap_or_default())?;
            Ok(path.into())
        }
        Kind::EmptyDir(source) => {
            let path = dirs.disk.join(&volume.name);
            empty_dir::ensure(&path, source)?;
            if let Some(group) = group {
                give(&path, group, false)?;
            }
            Ok(path.into())
        }
        Kind::Claim(source) => {
            let path = claimed(sources, pod, &source.claim_name, None).await?;
            Ok(Source {
                path,
                read_only: source.read_only == Some(true),
                image: None,
            })
        }
        Kind::Ephemeral => {
            let owner = pod.metadata.name.as_deref().unwrap_or_default();
            let name = format!("{owner}-{}", volume.name);
            Ok(claimed(sources, pod, &name, Some(pod)).await?.into())
        }
        Kind::Image(source) => {
            let name = source.reference.as_deref().unwrap_or_default();
            let policy = images::policy(source.pull_policy.as_deref(), name);
            let keyring = images::keyring_of(pod, sources.reader, sources.recorder).await;
            let witness = (sources.witness)(name);
            let image = sources
                .images
                .ensure(name, policy, &keyring, witness.as_ref())
                .await?;
            Ok(Source {
                path: image.lower.clone(),
                read_only: true,
                image: Some(image),
            })
        }
        Kind::ConfigMap(_) | Kind::Secret(_) | Kind::DownwardApi(_) | Kind::Projected(_) => {
            let fetched = fetch(sources.reader, pod, payload::needs(&volume.kind)).await?;
            let mut files = payload::files(&volume.kind, pod, &fetched, facts)?;
            for file in files.values_mut() {
                file.owner = file.owner.filter(|owner| sources.ids.has_user(*owner));
            }
            let path = dirs.memory.join(&volume.name);
            atomic::write(&path, &files, &|folder| match group {
                Some(group) => ownership::give_to_group(folder, group, true),
                None => Ok(()),
            })?;
            Ok(path.into())
        }
    }
}

/// Where the volume is that the claim `name` is bound to; a local one is the pod's group's, as the
/// stock kubelet has it.
async fn claimed(
    sources: &Sources<'_>,
    pod: &Pod,
    name: &str,
    owner: Option<&Pod>,
) -> Result<PathBuf, Cause> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let claim = sources.reader.claim(namespace, name).await?;
    let bound = claim::bound_to(name, claim, owner)?;
    let volume = sources.reader.persistent_volume(&bound.volume).await?;
    let place = claim::place(volume, &bound)?;
    let is_local = matches!(place, claim::Place::Local(_));
    let path = place.ensure()?;
    if let Some(group) = fs_group(pod, sources.ids).filter(|_| is_local) {
        give(&path, group, false)?;
    }
    Ok(path)
}

async fn fetch(reader: &Reader, pod: &Pod, needs: BTreeSet<Need>) -> Result<Fetched, api::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut fetched = Fetched::default();
    let answers = futures::future::join_all(needs.into_iter().map(|need| async move {
        let answer = match &need {
            Need::ConfigMap(name) => reader.config_map(namespace, name).await.map(Answer::Map),
            Need::Secret(name) => reader.secret(namespace, name).await.map(Answer::Secret),
            Need::Token {
                audience,
                expiration_seconds,
            } => reader
                .token(pod, audience.as_deref(), *expiration_seconds)
                .await
                .map(Answer::Token),
        };
        answer.map(|answer| (need, answer))
    }))
    .await;
    for answer in answers {
        match answer? {
            (Need::ConfigMap(name), Answer::Map(Some(map))) => {
                fetched.config_maps.insert(name, map);
            }
            (Need::Secret(name), Answer::Secret(Some(secret))) => {
                fetched.secrets.insert(name, secret);
            }
            (need, Answer::Token(token)) => {
                fetched.tokens.insert(need, token);
            }
            _ => {}
        }
    }
    Ok(fetched)
}

enum Answer {
    Map(Option<k8s_openapi::api::core::v1::ConfigMap>),
    Secret(Option<k8s_openapi::api::core::v1::Secret>),
    Token(String),
}

/// The group that volumes are given to. Where there is no such group, they are root's and so is
/// every container.
fn fs_group(pod: &Pod, ids: &Mapped) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    let group = u32::try_from(context.fs_group?).ok()?;
    ids.has_group(group).then_some(group)
}

fn give(path: &Path, group: u32, read_only: bool) -> Result<(), Cause> {
    ownership::give_to_group(path, group, read_only).map_err(|source| Cause::Ownership {
        path: path.to_owned(),
        group,
        source,
    })
}
