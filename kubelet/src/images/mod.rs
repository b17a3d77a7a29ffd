//! Images for containers: pulled with the pod's secrets, claimed, mounted, described.
//!
//! - `collect`: giving up what is no longer used, by `plan`

pub mod collect;
pub mod plan;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hpk_images::store::ErrorKind;
use hpk_images::{
    Claims, Credentials, Keyring, Mounter, PullPolicy, Quiet, Reference, Store, StoreConfig,
    overlay, store,
};
use hpk_shim_client::Mount;
use k8s_openapi::api::core::v1::{ContainerImage, Pod, Secret};
use oci_spec::image::ImageConfiguration;
use thiserror::Error;
use tokio::sync::Notify;
use tracing::warn;

use crate::api::Reader;
use crate::config::Args;
use crate::events::{Kind, Recorder};
use crate::text;

/// An image that a container can start from.
#[derive(Debug, Clone)]
pub struct Ready {
    /// As the pod's spec names it.
    pub reference: String,
    /// `REPOSITORY@sha256:…`
    pub id: String,
    pub config: ImageConfiguration,
    /// Where its files are, read-only.
    pub lower: PathBuf,
    /// Keeps the mount as long as this lives.
    hold: Hold,
}

impl Ready {
    /// Of its manifest, `sha256:…`.
    pub fn digest(&self) -> &str {
        &self.hold.digest
    }
}

/// Why an image can't be had; Display is what people read.
#[derive(Debug, Error)]
pub enum Error {
    #[error("Failed to apply default image tag {name:?}: {said}")]
    Name { name: String, said: String },
    #[error("Container image {0:?} is not present with pull policy of Never")]
    Never(String),
    #[error("failed to pull and unpack image {name:?}: {}", text::chain(.source))]
    Pull {
        name: String,
        #[source]
        source: store::Error,
    },
    #[error("failed to mount image {name:?}: {}", text::chain(.source))]
    Mount {
        name: String,
        #[source]
        source: hpk_images::mount::Error,
    },
}

impl Error {
    /// The reason that a waiting container gives.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Name { .. } => "InvalidImageName",
            Error::Never(_) => "ErrImageNeverPull",
            Error::Pull { .. } | Error::Mount { .. } => "ErrImagePull",
        }
    }
}

/// Why the node's images can't be looked after.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("can't name this node in {path}")]
    Holder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The name of this node among those that claim images: made once, as long as the node lives.
fn holder(run_dir: &Path) -> Result<String, OpenError> {
    let path = run_dir.join("image-holder");
    let known = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        other => Some(other),
    };
    let name = known.unwrap_or_else(|| {
        let id = crate::ids::fresh()?;
        let next = run_dir.join(".image-holder.new");
        fs::write(&next, &id)?;
        fs::rename(&next, &path)?;
        Ok(id)
    });
    name.map_err(|source| OpenError::Holder { path, source })
}

/// What a pull says before its end.
pub trait Witness: Send + Sync {
    /// The registry is about to be asked.
    fn pulling(&self);
    /// It wasn't needed.
    fn present(&self);
    /// It is here now.
    fn pulled(&self, took: Duration, size: u64);
}

/// The node's images.
#[derive(Debug)]
pub struct Images {
    store: Store,
    root: PathBuf,
    mounter: Mounter,
    claims: Claims,
    since: Instant,
    uses: Uses,
    /// What the node lists.
    listing: Mutex<Vec<ContainerImage>>,
    /// One was pulled: the list is to be read anew.
    pulled: Notify,
    /// Held for writing while an image is given up.
    gate: tokio::sync::RwLock<()>,
}

/// By digest: how many hold an image in hand, and when one was last taken or put down.
type Uses = Arc<Mutex<HashMap<String, (usize, Instant)>>>;

/// An image in hand: about to be used, though no pod's record says so yet.
#[derive(Debug)]
struct Hold {
    uses: Uses,
    digest: String,
}

impl Hold {
    fn new(uses: &Uses, digest: &str) -> Self {
        let hold = Self {
            uses: Arc::clone(uses),
            digest: digest.to_owned(),
        };
        hold.count(|holds| holds + 1);
        hold
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = uses.get(&self.digest).map_or(0, |(holds, _)| *holds);
        uses.insert(self.digest.clone(), (change(holds), Instant::now()));
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        Self::new(&self.uses, &self.digest)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.count(|holds| holds.saturating_sub(1));
    }
}

impl Images {
    pub async fn open(args: &Args) -> Result<Self, OpenError> {
        let store = Store::open(StoreConfig {
            root: args.image_store.clone(),
            registries: args.registries.clone(),
            logins: args.registry_login.clone(),
            policy: args.image_policy.clone(),
            max_bytes: args.image_store_max_gib,
            local_dir: args.root_dir.join("images"),
            limits: args.image_max_gib,
        })
        .await?;
        let claims = store.claims(&holder(&args.run_dir)?).await?;
        Ok(Self {
            store,
            root: args.image_store.clone(),
            mounter: Mounter::new(args.run_dir.join("images")),
            claims,
            since: Instant::now(),
            uses: Uses::default(),
            listing: Mutex::default(),
            pulled: Notify::new(),
            gate: tokio::sync::RwLock::default(),
        })
    }

    /// Digests of the images in hand.
    fn in_hand(&self) -> BTreeSet<String> {
        let uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let held = uses.iter().filter(|(_, (holds, _))| *holds > 0);
        held.map(|(digest, _)| digest.clone()).collect()
    }

    /// Since one was last taken or put down; what an earlier kubelet did counts as done at our start.
    fn unused_for(&self, digest: &str) -> Duration {
        let uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let since = uses.get(digest).map_or(self.since, |(_, since)| *since);
        since.elapsed()
    }

    /// The image, pulled if need be and mounted.
    pub async fn ensure(
        &self,
        name: &str,
        policy: PullPolicy,
        keyring: &Keyring,
        witness: &dyn Witness,
    ) -> Result<Ready, Error> {
        let reference: Reference = name.parse().map_err(|error| Error::Name {
            name: name.to_owned(),
            said: format!("{error}"),
        })?;
        let mut image = self
            .have(&reference, name, policy, keyring, witness)
            .await?;
        let mut hold = Hold::new(&self.uses, &image.digest);
        let mut gate = self.gate.read().await;
        // Another node may have removed it from the store between our look and our claim.
        while !self.claim(&image.digest).await {
            // Whoever waits to give an image up holds up all that come later: not for as long as a pull takes.
            drop(gate);
            image = self
                .have(&reference, name, policy, keyring, witness)
                .await?;
            hold = Hold::new(&self.uses, &image.digest);
            gate = self.gate.read().await;
        }
        let lower = self
            .mounter
            .ensure(&image)
            .await
            .map_err(|source| Error::Mount {
                name: name.to_owned(),
                source,
            })?;
        Ok(Ready {
            reference: name.to_owned(),
            id: format!(
                "{}/{}@{}",
                image.reference.registry(),
                image.reference.repository(),
                image.digest
            ),
            config: image.config,
            lower,
            hold,
        })
    }

    /// The image as it is in the store, pulled if need be.
    async fn have(
        &self,
        reference: &Reference,
        name: &str,
        policy: PullPolicy,
        keyring: &Keyring,
        witness: &dyn Witness,
    ) -> Result<store::Image, Error> {
        let pull_error = |source| Error::Pull {
            name: name.to_owned(),
            source,
        };
        let found = match policy {
            PullPolicy::Always => None,
            PullPolicy::IfNotPresent | PullPolicy::Never => {
                self.store.find(reference).await.map_err(pull_error)?
            }
        };
        match found {
            Some(image) => {
                witness.present();
                Ok(image)
            }
            None if policy == PullPolicy::Never => Err(Error::Never(name.to_owned())),
            None => {
                witness.pulling();
                let since = Instant::now();
                let image = self
                    .pull(reference, policy, keyring)
                    .await
                    .map_err(pull_error)?;
                witness.pulled(since.elapsed(), image.size);
                self.pulled.notify_one();
                Ok(image)
            }
        }
    }

    /// False if the store has lost it. Where claims can't be written, e.g. on a full disk, the image is used all the same:
    /// it is here, its use is shown each minute, and what removes images looks for their age, too.
    async fn claim(&self, digest: &str) -> bool {
        match self.claims.add(digest).await {
            Ok(kept) => kept,
            Err(error) => {
                warn!(error = text::chain(&error), "can't claim an image");
                true
            }
        }
    }

    /// With each of the pod's credentials for the registry, then without.
    async fn pull(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        keyring: &Keyring,
    ) -> Result<store::Image, store::Error> {
        // Collected first: the iterator's borrow may not cross an await in a spawned task.
        let candidates: Vec<Credentials> = keyring.find(reference).cloned().collect();
        for credentials in candidates {
            let credentials = Some(credentials);
            let answer = self
                .store
                .resolve_and_ensure(reference, policy, credentials, &Quiet)
                .await;
            match answer {
                Err(error) if error.kind() == ErrorKind::Unauthorized => {}
                other => return other,
            }
        }
        self.store
            .resolve_and_ensure(reference, policy, None, &Quiet)
            .await
    }
}

/// What is asked for, a pull policy by its name in the API, as it is for `image`; where nothing is
/// asked for, `:latest` and no tag are always pulled.
pub fn policy(asked: Option<&str>, image: &str) -> PullPolicy {
    match asked {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some(_) => PullPolicy::IfNotPresent,
        None => {
            let reference: Result<Reference, _> = image.parse();
            match reference {
                Ok(reference) if reference.is_latest() => PullPolicy::Always,
                _ => PullPolicy::IfNotPresent,
            }
        }
    }
}

/// The credentials of the pod's pull secrets. What can't be had of them is told: the image may be
/// free to all.
pub async fn keyring_of(pod: &Pod, reader: &Reader, recorder: &Recorder) -> Keyring {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let wanted = spec.and_then(|spec| spec.image_pull_secrets.as_deref());
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for secret in wanted.unwrap_or_default() {
        match reader.secret(namespace, &secret.name).await {
            Ok(Some(secret)) => found.push(secret),
            Ok(None) | Err(_) => missing.push(secret.name.clone()),
        }
    }
    let (keyring, unusable) = keyring(&found);
    missing.extend(unusable);
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        let reason = "FailedToRetrieveImagePullSecret";
        recorder.pod(pod, Kind::Warning, reason, message);
    }
    keyring
}

/// The credentials in these; what can't be read is named.
fn keyring(secrets: &[Secret]) -> (Keyring, Vec<String>) {
    let mut keyring = Keyring::default();
    let mut unusable = Vec::new();
    for secret in secrets {
        let data = secret.data.as_ref();
        let of = |key: &str| data.and_then(|data| data.get(key));
        let parsed = match (of(".dockerconfigjson"), of(".dockercfg")) {
            (Some(json), _) => Keyring::from_docker_config(&json.0).ok(),
            (None, Some(json)) => Keyring::from_dockercfg(&json.0).ok(),
            (None, None) => None,
        };
        match parsed {
            Some(more) => keyring.extend(more),
            None => unusable.push(secret.metadata.name.clone().unwrap_or_default()),
        }
    }
    (keyring, unusable)
}

/// The overlay of one run of a container.
pub fn rootfs_mounts(lower: &Path, upper: &Path, work: &Path) -> Vec<Mount> {
    overlay::rootfs_mounts(lower, upper, work)
        .into_iter()
        .map(|mount| Mount {
            kind: mount.kind,
            source: mount.source,
            options: mount.options,
        })
        .collect()
}

#[cfg(test)]
impl Ready {
    pub fn for_tests() -> Self {
        Self {
            reference: "image".to_owned(),
            id: "image@sha256:0".to_owned(),
            config: ImageConfiguration::default(),
            lower: PathBuf::new(),
            hold: Hold::new(&Uses::default(), "sha256:0"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_is_pulled_each_time_unless_told_otherwise() {
        assert_eq!(policy(None, "busybox"), PullPolicy::Always);
        assert_eq!(policy(None, "busybox:1.36"), PullPolicy::IfNotPresent);
        assert_eq!(policy(Some("Never"), "busybox"), PullPolicy::Never);
    }
}
