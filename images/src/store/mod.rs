//! The store: images by digest, on the shared file system.
//!
//! - [`config`]: where it lies
//! - [`resolve`]: which image a reference names, and who has it
//! - [`pull`]: download, list, merge, pack
//! - [`import`]: images from local tars; [`admit`]: what stays where it is
//! - [`files`]: names and atomic writing
//! - [`claims`]: who uses what, [`kept`] for as long as it runs; [`unused`]: removing what nobody does; [`budget`]: when the store has grown too large
//! - [`scratch`]: node-local folders
//! - [`error`]

mod admit;
mod budget;
pub mod claims;
mod config;
mod error;
mod files;
mod import;
mod kept;
mod pull;
mod resolve;
mod scratch;
mod unused;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oci_spec::image::ImageConfiguration;

pub use claims::Claims;
pub use config::StoreConfig;
pub use error::{Error, ErrorKind};
use files::{Files, ImageRecord, RefRecord, read_json};
pub use import::Newest;
pub use kept::Kept;
use pull::Pull;
use resolve::{Resolved, may_name};
pub use unused::Stored;

use crate::lease::{Lease, Watch};
use crate::limits::Budget;
use crate::{Credentials, Event, Progress, Reference, manifest};

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
        resolved.announce(progress);
        let record = self
            .ensure(&resolved, &reference.to_string(), progress)
            .await?;
        self.remember(reference, &resolved).await?;
        self.make_room(&record.digest).await;
        self.image(reference.clone(), record)
    }

    /// The image for `reference`, if the store has it; asks no registry.
    pub async fn find(&self, reference: &Reference) -> Result<Option<Image>, Error> {
        let (files, name) = (self.files.clone(), key(reference));
        let asked = reference.clone();
        let record = blocking(move || {
            let known: Option<RefRecord> = read_json(&files.reference(&name))?;
            // A record of a digest's name that says another image is wrong, whoever wrote it.
            let known = known.filter(|it| may_name(&asked, &it.resolved, &it.digest));
            let digest = match known {
                Some(known) => Some(known.digest),
                // A digest may name the image itself, whatever reference it was pulled by.
                None => asked.digest().map(str::to_owned),
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
        let mut watch = Watch::new(&path)?;
        let mut told = false;
        let lease = loop {
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
        let pull = Pull {
            resolved,
            name,
            progress,
            pulse: lease.pulse(),
            budget: Budget::new(self.config.limits),
        };
        tokio::select! {
            done = pull.run(&self.config, &self.files) => done,
            () = lease.hangs() => Err(Error::Hangs { name: name.to_owned() }),
        }
    }

    fn lock_for(&self, hex: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut pulling = self.pulling.lock().unwrap_or_else(PoisonError::into_inner);
        pulling.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(pulling.entry(hex.to_owned()).or_default())
    }

    async fn remember(&self, reference: &Reference, resolved: &Resolved) -> Result<(), Error> {
        let record = RefRecord {
            reference: key(reference),
            resolved: resolved.top.clone(),
            digest: resolved.digest.clone(),
        };
        let (files, wanted) = (self.files.clone(), record.clone());
        let known = blocking(move || {
            let known = read_json::<RefRecord>(&files.reference(&wanted.reference));
            Ok(known.ok().flatten() == Some(wanted))
        });
        if known.await? {
            return Ok(());
        }
        // The image's lease is over, and who opens the store removes what nobody's lease is for.
        let hex = files::reference_hex(&record.reference);
        let lease = self.files.lease(&hex);
        let mut watch = Watch::new(&lease)?;
        let _lease = loop {
            if let Some(lease) = Lease::try_acquire(&lease).map_err(full_or)? {
                break lease;
            }
            if watch.look()?.is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let files = self.files.clone();
        blocking(move || {
            files.remove_stale_temps(Some(&hex))?;
            files.write_json(&hex, &files.reference(&record.reference), &record)
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
