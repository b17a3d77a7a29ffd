//! One pull, under the lease: layers into scratch, listed and checked, merged, packed, placed in the store.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use oci_spec::image::ImageConfiguration;
use tokio::sync::mpsc;

use super::error::{Error, available, is_full};
use super::files::{Files, ImageRecord};
use super::scratch::Scratch;
use super::{Resolved, Store, blocking};
use crate::layer::{self, Listing};
use crate::manifest::{Descriptor, MAX_BYTES};
use crate::merge::{Tree, merge};
use crate::pack::pack;
use crate::progress::{Event, Progress};
use crate::source;

/// Layers downloaded and listed at once.
const PARALLEL: usize = 4;

impl Store {
    pub(super) async fn pull(
        &self,
        resolved: &Resolved,
        name: &str,
        hex: &str,
        progress: &dyn Progress,
    ) -> Result<ImageRecord, Error> {
        let local_dir = self.config.local_dir.clone();
        let compressed: u64 = resolved.manifest.layers.iter().map(|l| l.size).sum();
        let scratch = blocking(move || {
            let scratch = Scratch::make(&local_dir)?;
            // The layers, and a squashfs of about their size.
            check_space(&local_dir, compressed.saturating_mul(2))?;
            Ok(scratch)
        })
        .await?;
        let config = self
            .fetch_config(resolved, name, &scratch, progress)
            .await?;
        let (layers, listings) = self
            .fetch_layers(resolved, name, &config, &scratch, progress)
            .await?;

        let packed = scratch.path("image.sqfs");
        let tree = merge(&listings).map_err(|source| Error::Merge {
            name: name.to_owned(),
            source,
        })?;
        drop(listings);
        pack_reporting(tree, layers, packed.clone(), name.to_owned(), progress).await?;

        let (files, hex) = (self.files.clone(), hex.to_owned());
        let digest = resolved.digest.clone();
        let config_digest = resolved.manifest.config.digest.clone();
        let record = blocking(move || {
            // The scratch folder goes when all is done, or on the way out.
            let _scratch = scratch;
            place(
                &files,
                &hex,
                &packed,
                ImageRecord {
                    digest,
                    config_digest,
                    config,
                    size: 0,
                },
            )
        })
        .await?;
        progress.event(Event::Stored { bytes: record.size });
        Ok(record)
    }

    async fn fetch_config(
        &self,
        resolved: &Resolved,
        name: &str,
        scratch: &Scratch,
        progress: &dyn Progress,
    ) -> Result<serde_json::Value, Error> {
        let blob = &resolved.manifest.config;
        if blob.size > MAX_BYTES {
            let reason = format!(
                "the config has {} bytes, the limit is {MAX_BYTES}",
                blob.size
            );
            return Err(Error::CorruptLayer {
                name: name.to_owned(),
                digest: blob.digest.clone(),
                reason,
            });
        }
        let path = scratch.path("config.json");
        fetch(resolved, name, blob, &path, progress).await?;
        let bytes = tokio::fs::read(&path)
            .await
            .map_err(|e| Error::io("reading", &path, e))?;
        let error = |source| Error::Config {
            name: name.to_owned(),
            source,
        };
        let config = serde_json::from_slice::<serde_json::Value>(&bytes).map_err(error)?;
        serde_json::from_value::<ImageConfiguration>(config.clone()).map_err(error)?;
        Ok(config)
    }

    /// The layers' files and lists, the lowest first.
    async fn fetch_layers(
        &self,
        resolved: &Resolved,
        name: &str,
        config: &serde_json::Value,
        scratch: &Scratch,
        progress: &dyn Progress,
    ) -> Result<(Vec<PathBuf>, Vec<Listing>), Error> {
        let layers = &resolved.manifest.layers;
        let diff_ids = config
            .pointer("/rootfs/diff_ids")
            .and_then(|d| d.as_array());
        let diff_ids: Vec<&str> = diff_ids
            .into_iter()
            .flatten()
            .filter_map(|d| d.as_str())
            .collect();
        if diff_ids.len() != layers.len() {
            let reason = format!(
                "the manifest has {} layers, the config {}",
                layers.len(),
                diff_ids.len()
            );
            return Err(Error::CorruptLayer {
                name: name.to_owned(),
                digest: resolved.manifest.config.digest.clone(),
                reason,
            });
        }
        let pulls = layers
            .iter()
            .zip(diff_ids)
            .enumerate()
            .map(|(index, (blob, diff_id))| {
                let path = scratch.path(&format!("layer-{index}"));
                async move {
                    fetch(resolved, name, blob, &path, progress).await?;
                    let listing = list_checked(name, blob, diff_id, &path).await?;
                    Ok::<_, Error>((path, listing))
                }
            });
        let pairs: Vec<(PathBuf, Listing)> = stream::iter(pulls.collect::<Vec<_>>())
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        Ok(pairs.into_iter().unzip())
    }
}

async fn fetch(
    resolved: &Resolved,
    name: &str,
    blob: &Descriptor,
    path: &Path,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let mut options = tokio::fs::OpenOptions::new();
    let opened = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .await;
    let mut file = opened.map_err(|e| Error::io("creating", path, e))?;
    match resolved.source.blob(blob, &mut file, progress).await {
        Err(source::Error::Local { source, .. }) if is_full(&source) => {
            Err(Error::full(path, Some(blob.size)))
        }
        Err(source) => Err(Error::Blob {
            name: name.to_owned(),
            source: Box::new(source),
        }),
        Ok(()) => Ok(()),
    }
}

async fn list_checked(
    name: &str,
    blob: &Descriptor,
    diff_id: &str,
    path: &Path,
) -> Result<Listing, Error> {
    let opened = path.to_owned();
    let listed = tokio::task::spawn_blocking(move || layer::list(File::open(opened)?)).await;
    let listing = listed.map_err(|e| Error::Interrupted(e.to_string()))?;
    let listing = listing.map_err(|source| Error::Layer {
        name: name.to_owned(),
        digest: blob.digest.clone(),
        source,
    })?;
    if listing.diff_id == diff_id {
        return Ok(listing);
    }
    Err(Error::CorruptLayer {
        name: name.to_owned(),
        digest: blob.digest.clone(),
        reason: format!(
            "its content is {}, the config says {diff_id}",
            listing.diff_id
        ),
    })
}

/// Packs on a thread of its own and passes its progress on.
async fn pack_reporting(
    tree: Tree,
    layers: Vec<PathBuf>,
    target: PathBuf,
    name: String,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let bytes = tree
        .files
        .iter()
        .flat_map(|f| f.values())
        .map(|f| f.size)
        .sum();
    progress.event(Event::Packing { bytes });
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let work = tokio::task::spawn_blocking(move || {
        let packed = pack(&tree, &layers, &target, |n| {
            // Nobody listens any more when the pull was given up.
            let _ = sender.send(n);
        });
        packed.map_err(|source| explain(source, &target, name))
    });
    while let Some(bytes) = receiver.recv().await {
        progress.event(Event::Packed { bytes });
    }
    work.await
        .unwrap_or_else(|e| Err(Error::Interrupted(e.to_string())))
}

/// mksquashfs says in words that the disk is full; the disk itself says it better.
fn explain(source: crate::pack::Error, target: &Path, name: String) -> Error {
    /// What mksquashfs may have had in its hands and could not write.
    const MARGIN: u64 = 4 << 20;
    let dir = target.parent().unwrap_or(target);
    match available(dir) {
        Ok(free) if free < MARGIN => Error::full(target, None),
        _ => Error::Pack { name, source },
    }
}

fn check_space(dir: &Path, need: u64) -> Result<(), Error> {
    let free = available(dir).map_err(|e| Error::io("measuring", dir, e))?;
    match free < need {
        true => Err(Error::full(dir, Some(need))),
        false => Ok(()),
    }
}

/// Copies the squashfs to the store, then writes its record, which makes it count.
fn place(
    files: &Files,
    hex: &str,
    packed: &Path,
    mut record: ImageRecord,
) -> Result<ImageRecord, Error> {
    record.size = fs::metadata(packed)
        .map_err(|e| Error::io("reading", packed, e))?
        .len();
    check_space(&files.root, record.size)?;
    let temp = files.temp(hex);
    let mut from = File::open(packed).map_err(|e| Error::io("reading", packed, e))?;
    let mut to = temp.create()?;
    match io::copy(&mut from, &mut to) {
        Err(e) if is_full(&e) => return Err(Error::full(&files.root, Some(record.size))),
        other => other.map_err(|e| Error::io("writing", &temp.path, e))?,
    };
    temp.place(to, &files.sqfs(hex))?;
    files.write_json(hex, &files.record(hex), &record)?;
    Ok(record)
}
