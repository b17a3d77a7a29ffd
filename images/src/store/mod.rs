//! The store: images by digest, on the shared file system.
//!
//! - [`pull`]: download, list, merge, pack
//! - [`import`]: images from local tars
//! - [`files`]: names and atomic writing
//! - [`scratch`]: node-local folders
//! - [`error`]

mod error;
mod files;
mod import;
mod pull;
mod scratch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oci_spec::image::ImageConfiguration;

pub use error::{Error, ErrorKind};
use files::{Files, ImageRecord, RefRecord, read_json};

use crate::lease::{Lease, Watch};
use crate::manifest::{self, Document, Manifest};
use crate::registries::Registries;
use crate::source::Source;
use crate::source::registry::Registry;
use crate::{Credentials, Event, Progress, Reference};

/// Where the store lies and what it uses.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The store on the shared file system, normally `~/.hpk/store`.
    pub root: PathBuf,
    /// `registries.yaml` in K3s's form; a file that doesn't exist is as good as none.
    pub registries: Option<PathBuf>,
    /// Node-local scratch for downloads; needs about two and a half times an image's compressed size.
    pub local_dir: PathBuf,
}

/// When to ask the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Resolve the tag each time; download what isn't there.
    Always,
    /// Ask only where the store doesn't know the reference.
    IfNotPresent,
    /// Never ask.
    Never,
}

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// What was asked for.
    pub reference: Reference,
    /// Digest of the manifest for this platform, `sha256:…`; names the image in the store.
    pub digest: String,
    /// The image's config.
    pub config: ImageConfiguration,
    /// Digest of the config, which Docker calls the image's id.
    pub config_digest: String,
    /// The squashfs.
    pub sqfs: PathBuf,
    /// Size of the squashfs, bytes.
    pub size: u64,
}

/// The image store of one user.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    files: Files,
    /// `HPK_DEV=1`: tars here go before any registry.
    dev_images: Option<PathBuf>,
    /// One pull of an image at a time in this process; the lease is between processes.
    pulling: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl StoreConfig {
    /// `HPK_STORE` (else `store` in `HPK_HOME`, else `~/.hpk/store`), `HPK_REGISTRIES` (else `registries.yaml` in
    /// `HPK_HOME` or `~/.hpk`), `HPK_LOCAL_DIR` (else `/var/lib/hpk/images` where `/var/lib/hpk` is ours to write, else
    /// `hpk-UID-images` in the temporary folder).
    pub fn from_env() -> Result<Self, Error> {
        let path = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let home = path("HPK_HOME").or_else(|| path("HOME").map(|h| h.join(".hpk")));
        let root = path("HPK_STORE").or_else(|| Some(home.as_ref()?.join("store")));
        let registries =
            path("HPK_REGISTRIES").or_else(|| Some(home.as_ref()?.join("registries.yaml")));
        let local_dir = path("HPK_LOCAL_DIR").unwrap_or_else(|| {
            let bubble = Path::new("/var/lib/hpk");
            let ours = nix::unistd::access(bubble, nix::unistd::AccessFlags::W_OK).is_ok();
            match ours {
                true => bubble.join("images"),
                false => {
                    std::env::temp_dir().join(format!("hpk-{}-images", nix::unistd::geteuid()))
                }
            }
        });
        Ok(Self {
            root: root.ok_or(Error::NoHome)?,
            registries,
            local_dir,
        })
    }
}

/// What a registry has under a reference.
struct Resolved {
    source: Box<dyn Source>,
    /// Digest of what the reference names: an image or an index.
    top: String,
    /// Digest of the image.
    digest: String,
    manifest: Manifest,
}

impl Store {
    /// Opens the store, making its folders (0700) and removing what dead pullers left.
    ///
    /// With `HPK_DEV=1` in the environment, images in `images/*.tar` beside the store go before the registries'.
    pub async fn open(config: StoreConfig) -> Result<Self, Error> {
        let files = Files {
            root: config.root.clone(),
        };
        let (local, store_files) = (config.local_dir.clone(), files.clone());
        blocking(move || {
            store_files.make_folders()?;
            store_files.remove_stale_temps(None)?;
            scratch::sweep(&local)
        })
        .await?;
        let dev = std::env::var_os("HPK_DEV").is_some_and(|v| v == "1");
        Ok(Store {
            dev_images: dev.then(|| config.root.with_file_name("images")),
            config,
            files,
            pulling: Mutex::default(),
        })
    }

    /// Gives the image for `reference`, pulling it if `policy` and its absence ask for it.
    ///
    /// Cancel-safe: dropped in the middle, it leaves nothing behind but what the next pull removes.
    pub async fn resolve_and_ensure(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        credentials: Option<Credentials>,
        progress: &dyn Progress,
    ) -> Result<Image, Error> {
        if let Some(image) = self.find_dev_image(reference, progress).await? {
            return Ok(image);
        }
        // What a digest names doesn't change: there is nothing to ask even with Always.
        if (policy != PullPolicy::Always || reference.digest().is_some())
            && let Some(image) = self.find(reference).await?
        {
            return Ok(image);
        }
        if policy == PullPolicy::Never {
            return Err(Error::NeverPull {
                reference: reference.to_string(),
            });
        }
        let resolved = self.resolve(reference, credentials.as_ref()).await?;
        progress.event(Event::Resolved {
            digest: resolved.digest.clone(),
            layers: resolved.manifest.layers.len(),
            bytes: resolved.manifest.layers.iter().map(|l| l.size).sum(),
        });
        let record = self
            .ensure(&resolved, &reference.to_string(), progress)
            .await?;
        self.remember(reference, &resolved).await?;
        self.image(reference.clone(), record)
    }

    /// The image for `reference`, if the store has it; asks no registry.
    pub async fn find(&self, reference: &Reference) -> Result<Option<Image>, Error> {
        let (files, name) = (self.files.clone(), key(reference));
        // A digest may name the image itself, whatever reference it was pulled by.
        let direct = reference.digest().map(str::to_owned);
        let record = blocking(move || {
            let digest = match read_json::<RefRecord>(&files.reference(&name))? {
                Some(known) => Some(known.digest),
                None => direct,
            };
            digest.map_or(Ok(None), |digest| load(&files, &digest))
        })
        .await?;
        record
            .map(|record| self.image(reference.clone(), record))
            .transpose()
    }

    /// All images, one entry per reference, by name.
    pub async fn list(&self) -> Result<Vec<Image>, Error> {
        let files = self.files.clone();
        let records = blocking(move || {
            let mut found = Vec::new();
            for (_, known) in files.references()? {
                if let Some(record) = load(&files, &known.digest)? {
                    found.push((known.reference, record));
                }
            }
            found.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(found)
        })
        .await?;
        let image =
            |(name, record): (String, ImageRecord)| Some(self.image(name.parse().ok()?, record));
        records.into_iter().filter_map(image).collect()
    }

    /// Removes the image `digest` and the references to it; an unknown one is no error.
    ///
    /// Mounts of it go on working on this node; on NFS, other nodes' may not.
    pub async fn remove(&self, digest: &str) -> Result<(), Error> {
        let (files, digest) = (self.files.clone(), digest.to_owned());
        blocking(move || {
            let hex = hex_of(&digest)?;
            for (path, known) in files.references()? {
                if known.digest == digest {
                    files::remove(&path)?;
                }
            }
            // The record first: without it the image isn't there.
            files::remove(&files.record(&hex))?;
            files::remove(&files.sqfs(&hex))
        })
        .await
    }

    async fn resolve(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Resolved, Error> {
        let registries = match &self.config.registries {
            Some(path) => Registries::load(path)?,
            None => Registries::default(),
        };
        let mut failures = Vec::new();
        for endpoint in registries.plan_endpoints(reference) {
            // A pull secret is meant for the registry, and is not shown to its mirrors.
            let credentials = credentials.filter(|_| !endpoint.mirror);
            match Registry::connect(&endpoint, reference, credentials).await {
                Err(e) => failures.push(e),
                Ok(registry) => match registry.manifest(None).await {
                    Err(e) => failures.push(e),
                    Ok(top) => return self.choose(reference, Box::new(registry), top).await,
                },
            }
        }
        Err(Error::Endpoints {
            reference: reference.to_string(),
            failures,
        })
    }

    async fn choose(
        &self,
        reference: &Reference,
        source: Box<dyn Source>,
        (bytes, top): (Vec<u8>, String),
    ) -> Result<Resolved, Error> {
        let error = |source| Error::Manifest {
            name: reference.to_string(),
            source,
        };
        manifest::digest_hex(&top).map_err(error)?;
        let (digest, document) = match manifest::parse(&bytes).map_err(error)? {
            image @ Document::Image(_) => (top.clone(), image),
            Document::Index(entries) => {
                let entry =
                    manifest::choose(&entries, manifest::machine_architecture()).map_err(error)?;
                let fetched = source.manifest(Some(&entry.digest)).await;
                let (bytes, _) = fetched.map_err(|source| Error::Blob {
                    name: reference.to_string(),
                    source: Box::new(source),
                })?;
                (
                    entry.digest.clone(),
                    manifest::parse(&bytes).map_err(error)?,
                )
            }
        };
        match document {
            Document::Image(manifest) => Ok(Resolved {
                source,
                top,
                digest,
                manifest,
            }),
            Document::Index(_) => Err(error(manifest::Error::Unsupported {
                version: 2,
                media_type: "an index in an index".to_owned(),
            })),
        }
    }

    /// The image's record, pulling it if no other has or does.
    async fn ensure(
        &self,
        resolved: &Resolved,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<ImageRecord, Error> {
        let hex = hex_of(&resolved.digest)?;
        let lock = self.lock_for(&hex);
        let _one_in_this_process = lock.lock().await;
        let path = self.files.lease(&hex);
        let mut watch = Watch::new(&path);
        let mut told = false;
        let _lease = loop {
            // Looking and taking the lease are two small files' work; they may well stay on this thread.
            if let Some(record) = load(&self.files, &resolved.digest)? {
                return Ok(record);
            }
            if let Some(lease) = Lease::try_acquire(&path).map_err(full_or)? {
                break lease;
            }
            if let Some(holder) = watch.look()? {
                if !told {
                    let holder = holder.to_string();
                    progress.event(Event::Waiting { holder });
                    told = true;
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        };
        // The last holder may have finished between our look and our lease.
        if let Some(record) = load(&self.files, &resolved.digest)? {
            return Ok(record);
        }
        self.files.remove_stale_temps(Some(&hex))?;
        self.pull(resolved, name, &hex, progress).await
    }

    fn lock_for(&self, hex: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut pulling = self.pulling.lock().unwrap_or_else(PoisonError::into_inner);
        pulling.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(pulling.entry(hex.to_owned()).or_default())
    }

    async fn remember(&self, reference: &Reference, resolved: &Resolved) -> Result<(), Error> {
        let name = key(reference);
        let record = RefRecord {
            reference: name.clone(),
            resolved: resolved.top.clone(),
            digest: resolved.digest.clone(),
        };
        let files = self.files.clone();
        blocking(move || {
            let path = files.reference(&name);
            let hex = hex_of(&record.digest)?;
            let known = read_json::<RefRecord>(&path).ok().flatten();
            match known.is_some_and(|k| k.digest == record.digest && k.resolved == record.resolved)
            {
                true => Ok(()),
                false => files.write_json(&hex, &path, &record),
            }
        })
        .await
    }

    fn image(&self, reference: Reference, record: ImageRecord) -> Result<Image, Error> {
        let hex = hex_of(&record.digest)?;
        let config = serde_json::from_value(record.config).map_err(|source| Error::Record {
            path: self.files.record(&hex),
            source,
        })?;
        Ok(Image {
            reference,
            config,
            config_digest: record.config_digest,
            sqfs: self.files.sqfs(&hex),
            digest: record.digest,
            size: record.size,
        })
    }
}

/// The name a reference has in the store: by digest where it has one, whatever the tag beside it.
fn key(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => reference.with_digest(digest).to_string(),
        None => reference.to_string(),
    }
}

/// The record of the image `digest`, if it is complete.
fn load(files: &Files, digest: &str) -> Result<Option<ImageRecord>, Error> {
    let hex = hex_of(digest)?;
    let record: Option<ImageRecord> = read_json(&files.record(&hex))?;
    Ok(record.filter(|r| std::fs::metadata(files.sqfs(&hex)).is_ok_and(|m| m.len() == r.size)))
}

fn hex_of(digest: &str) -> Result<String, Error> {
    let hex = manifest::digest_hex(digest).map_err(|source| Error::Manifest {
        name: digest.to_owned(),
        source,
    })?;
    Ok(hex.to_owned())
}

fn full_or(error: crate::lease::Error) -> Error {
    match error::is_full(&error.source) {
        true => Error::full(&error.path, None),
        false => error.into(),
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::Interrupted(e.to_string())))
}
