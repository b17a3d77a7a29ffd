//! One pull, under the lease: layers into scratch, listed and checked, merged, packed, placed in the store.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use oci_spec::image::ImageConfiguration;
use tokio::sync::mpsc;

use super::error::{Error, available, is_full};
use super::files::{Files, ImageRecord};
use super::resolve::Resolved;
use super::scratch::Scratch;
use super::{StoreConfig, blocking, hex_of, load};
use crate::layer::{self, Listing};
use crate::lease::Pulse;
use crate::limits::{Budget, RESERVE};
use crate::manifest::{self, Descriptor, MAX_BYTES};
use crate::merge::{Tree, merge};
use crate::pack::pack;
use crate::progress::{Event, Progress};
use crate::source;

/// Layers downloaded and listed at once.
const PARALLEL: usize = 4;

/// Bytes of the squashfs that are copied to the store before they must be on its disk: what waits in memory for a slow
/// file system would be one silence at the end, and a full one would be found late.
const COPY_STEP: u64 = 64 << 20;

/// One image's way into the store, while its lease is held.
pub(super) struct Pull<'a> {
    pub resolved: &'a Resolved,
    /// The image as it was asked for, for messages.
    pub name: &'a str,
    pub progress: &'a dyn Progress,
    pub pulse: Pulse,
    pub budget: Budget,
}

/// A pull's progress shows its lease that it gets on, too.
impl Progress for Pull<'_> {
    fn event(&self, event: Event) {
        use Event::{Downloaded, Packed, Retrying};
        // Attempts without getting on are counted.
        if matches!(event, Downloaded { .. } | Packed { .. } | Retrying { .. }) {
            self.pulse.beat();
        }
        self.progress.event(event);
    }
}

impl Pull<'_> {
    /// Downloads, merges, packs, and places it.
    pub async fn run(&self, config: &StoreConfig, files: &Files) -> Result<ImageRecord, Error> {
        let manifest = &self.resolved.manifest;
        let (local_dir, compressed) = (config.local_dir.clone(), manifest.layers_size());
        let scratch = blocking(move || {
            let scratch = Scratch::make(&local_dir)?;
            // The layers, and a squashfs of about their size.
            check_space(&local_dir, compressed.saturating_mul(2))?;
            Ok(scratch)
        })
        .await?;
        let image_config = self.fetch_config(&scratch).await?;
        let (layers, listings) = self.fetch_layers(&image_config, &scratch).await?;
        let name = self.name.to_owned();
        let tree =
            blocking(move || merge(&listings).map_err(|source| Error::Merge { name, source }))
                .await?;
        let packed = scratch.path("image.sqfs");
        self.pack(tree, layers, packed.clone()).await?;

        let record = ImageRecord {
            digest: self.resolved.digest.clone(),
            config_digest: manifest.config.digest.clone(),
            config: image_config,
            size: 0,
        };
        let (files, pulse) = (files.clone(), self.pulse.clone());
        let record = blocking(move || {
            // The scratch folder goes when all is done, or on the way out.
            let _scratch = scratch;
            place(&files, &packed, record, &pulse)
        })
        .await?;
        self.event(Event::Stored { bytes: record.size });
        Ok(record)
    }

    fn corrupt(&self, blob: &Descriptor, reason: String) -> Error {
        Error::CorruptLayer {
            name: self.name.to_owned(),
            digest: blob.digest.clone(),
            reason,
        }
    }

    async fn fetch_config(&self, scratch: &Scratch) -> Result<serde_json::Value, Error> {
        let blob = &self.resolved.manifest.config;
        if blob.size > MAX_BYTES {
            let size = blob.size;
            let reason = format!("the config has {size} bytes, the limit is {MAX_BYTES}");
            return Err(self.corrupt(blob, reason));
        }
        let path = scratch.path("config.json");
        self.fetch(blob, &path).await?;
        let bytes = tokio::fs::read(&path)
            .await
            .map_err(|e| Error::io("reading", &path, e))?;
        let error = |source| Error::Config {
            name: self.name.to_owned(),
            source,
        };
        let config = serde_json::from_slice::<serde_json::Value>(&bytes).map_err(error)?;
        serde_json::from_value::<ImageConfiguration>(config.clone()).map_err(error)?;
        if !self.resolved.fits {
            let text = |name: &str| config.get(name).and_then(|it| it.as_str());
            let checked = manifest::check_platform(text("os"), text("architecture"));
            checked.map_err(|source| Error::Manifest {
                name: self.name.to_owned(),
                source,
            })?;
        }
        Ok(config)
    }

    /// The layers' files and lists, the lowest first.
    async fn fetch_layers(
        &self,
        config: &serde_json::Value,
        scratch: &Scratch,
    ) -> Result<(Vec<PathBuf>, Vec<Listing>), Error> {
        let layers = &self.resolved.manifest.layers;
        let diff_ids = config
            .pointer("/rootfs/diff_ids")
            .and_then(|d| d.as_array());
        let diff_ids: Vec<&str> = diff_ids
            .into_iter()
            .flatten()
            .filter_map(|d| d.as_str())
            .collect();
        if diff_ids.len() != layers.len() {
            let (has, says) = (layers.len(), diff_ids.len());
            let reason = format!("the manifest has {has} layers, the config {says}");
            return Err(self.corrupt(&self.resolved.manifest.config, reason));
        }
        let pulls = layers
            .iter()
            .zip(diff_ids)
            .enumerate()
            .map(|(index, (blob, diff_id))| {
                let path = scratch.path(&format!("layer-{index}"));
                async move {
                    self.fetch(blob, &path).await?;
                    let listing = self.list(blob, diff_id, &path).await?;
                    Ok::<_, Error>((path, listing))
                }
            });
        let pairs: Vec<(PathBuf, Listing)> = stream::iter(pulls.collect::<Vec<_>>())
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        Ok(pairs.into_iter().unzip())
    }

    async fn fetch(&self, blob: &Descriptor, path: &Path) -> Result<(), Error> {
        let mut options = tokio::fs::OpenOptions::new();
        let opened = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .await;
        let mut file = opened.map_err(|e| Error::io("creating", path, e))?;
        match self.resolved.source.blob(blob, &mut file, self).await {
            Err(source::Error::Local { source, .. }) if is_full(&source) => {
                Err(Error::full(path, Some(blob.size)))
            }
            Err(source) => Err(Error::Blob {
                name: self.name.to_owned(),
                source: Box::new(source),
            }),
            Ok(()) => Ok(()),
        }
    }

    /// A layer's list, its content checked against the config.
    async fn list(&self, blob: &Descriptor, diff_id: &str, path: &Path) -> Result<Listing, Error> {
        let (name, digest) = (self.name.to_owned(), blob.digest.clone());
        let (path, pulse, budget) = (path.to_owned(), self.pulse.clone(), self.budget.clone());
        let listing = blocking(move || {
            let listed = File::open(path).and_then(|f| layer::list(pulse.of(f), &budget));
            listed.map_err(|source| Error::Layer {
                name,
                digest,
                source,
            })
        })
        .await?;
        if listing.diff_id == diff_id {
            return Ok(listing);
        }
        let is = &listing.diff_id;
        Err(self.corrupt(
            blob,
            format!("its content is {is}, the config says {diff_id}"),
        ))
    }

    /// Packs on a thread of its own and passes its progress on.
    async fn pack(&self, tree: Tree, layers: Vec<PathBuf>, target: PathBuf) -> Result<(), Error> {
        let sizes = tree.files.iter().flat_map(|f| f.values()).map(|f| f.size);
        let bytes = sizes.fold(0, u64::saturating_add);
        self.event(Event::Packing { bytes });
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let name = self.name.to_owned();
        let work = tokio::task::spawn_blocking(move || {
            let dir = target.parent().unwrap_or(&target);
            let free = available(dir).map_err(|e| Error::io("measuring", dir, e))?;
            let packed = pack(&tree, &layers, &target, free - free / RESERVE, |n| {
                // Nobody listens any more when the pull was given up.
                let _ = sender.send(n);
            });
            packed.map_err(|source| explain(source, &target, name))
        });
        while let Some(bytes) = receiver.recv().await {
            self.event(Event::Packed { bytes });
        }
        work.await
            .unwrap_or_else(|e| Err(Error::Interrupted(e.to_string())))
    }
}

/// mksquashfs says in words that the disk is full; the disk itself says it better.
fn explain(source: crate::pack::Error, target: &Path, name: String) -> Error {
    /// What mksquashfs may have had in its hands and could not write.
    const MARGIN: u64 = 4 << 20;
    let dir = target.parent().unwrap_or(target);
    match (&source, available(dir)) {
        (crate::pack::Error::TooLarge { .. }, _) => Error::full(target, None),
        (_, Ok(free)) if free < MARGIN => Error::full(target, None),
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
    packed: &Path,
    mut record: ImageRecord,
    pulse: &Pulse,
) -> Result<ImageRecord, Error> {
    let hex = hex_of(&record.digest)?;
    // Another may have done it meanwhile, where our lease seemed dead for a while; nodes have mounted that then.
    if let Some(known) = load(files, &record.digest)? {
        return Ok(known);
    }
    record.size = fs::metadata(packed)
        .map_err(|e| Error::io("reading", packed, e))?
        .len();
    check_space(&files.root, record.size)?;
    let temp = files.temp(&hex)?;
    let from = File::open(packed).map_err(|e| Error::io("reading", packed, e))?;
    let mut to = temp.create()?;
    match copy(from, &mut to, pulse) {
        Err(e) if is_full(&e) => return Err(Error::full(&files.root, Some(record.size))),
        other => other.map_err(|e| Error::io("writing", &temp.path, e))?,
    };
    temp.place(to, &files.sqfs(&hex))?;
    files.write_json(&hex, &files.record(&hex), &record)?;
    Ok(record)
}

fn copy(mut from: File, to: &mut File, pulse: &Pulse) -> io::Result<()> {
    while io::copy(&mut from.by_ref().take(COPY_STEP), to)? > 0 {
        to.sync_data()?;
        pulse.beat();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Lease;

    #[tokio::test]
    async fn what_another_has_placed_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files {
            root: dir.path().join("store"),
        };
        files.make_folders().unwrap();
        let lease = Lease::try_acquire(&dir.path().join("lease")).unwrap();
        let pulse = lease.unwrap().pulse();
        let digest = format!("sha256:{}", "a".repeat(64));
        let put = |content: &str| {
            let packed = dir.path().join(content);
            fs::write(&packed, content).unwrap();
            let record = ImageRecord {
                digest: digest.clone(),
                config_digest: digest.clone(),
                config: serde_json::json!({}),
                size: 0,
            };
            place(&files, &packed, record, &pulse).unwrap().size
        };
        let hex = hex_of(&digest).unwrap();
        assert_eq!(put("first"), 5);
        assert_eq!(put("a late one"), 5);
        assert_eq!(fs::read(files.sqfs(&hex)).unwrap(), b"first");
        // One that is not whole is no image.
        fs::write(files.sqfs(&hex), "fir").unwrap();
        assert_eq!(put("whole"), 5);
        assert_eq!(fs::read(files.sqfs(&hex)).unwrap(), b"whole");
    }
}
