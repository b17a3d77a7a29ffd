//! Looking after the images each minute: claims are renewed, what this node no longer needs is given up, and what nobody
//! needs goes from the store when its disk is nearly full.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use hpk_images::store::{self, claims};
use hpk_images::{Reference, Stored};
use k8s_openapi::api::core::v1::{ContainerImage, Node};
use nix::sys::statvfs::statvfs;
use thiserror::Error;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::Images;
use super::plan::{Limits, Space, idle, outdated};
use crate::access::Entry;
use crate::agent::Agent;
use crate::events::Kind;
use crate::text;

/// Images that a node lists, as with the stock kubelet.
const LISTED: usize = 50;

#[derive(Debug, Error)]
pub enum Error {
    #[error("can't look at the image store")]
    Store(#[from] store::Error),
    #[error("can't unmount an image")]
    Unmount(#[from] hpk_images::mount::Error),
    #[error("can't tell the free space of {path}")]
    Space {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
    )]
    TooLittle { wanted: u64, freed: u64 },
}

/// Runs for ever.
pub async fn run(agent: Arc<Agent>, node: Node) {
    let limits = agent.config.image_limits();
    // As often as an image may have become idle, and often enough for the claims.
    let pause = limits.min_age.clamp(Duration::from_secs(1), claims::BEAT);
    let mut ticker = tokio::time::interval(pause);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        let entries = agent.registry.all();
        match agent.images.look_after(&entries, &limits).await {
            Ok(()) => {}
            Err(error @ Error::TooLittle { .. }) => {
                let reason = "FreeDiskSpaceFailed";
                agent
                    .recorder
                    .node(&node, Kind::Warning, reason, error.to_string());
            }
            Err(error) => warn!(error = text::chain(&error), "can't look after the images"),
        }
    }
}

impl Images {
    async fn look_after(&self, entries: &[Entry], limits: &Limits) -> Result<(), Error> {
        let used = self.used_here(entries).await?;
        let held = self.claims.held();
        let ages = held
            .iter()
            .map(|digest| (digest.as_str(), self.unused_for(digest)));
        for digest in idle(ages, &used, limits.min_age) {
            let _gate = self.gate.write().await;
            if self.unused_for(&digest) < limits.min_age {
                continue;
            }
            // Overlays that stand on it go on: only new ones would miss it, and they mount it again.
            self.mounter.release(&digest).await?;
            self.claims.release(&digest).await?;
        }
        self.claims.beat().await?;
        let freed = self.free(limits).await;
        self.list_anew();
        freed
    }

    /// Removes from the store what nobody uses, as far as the limits want it.
    async fn free(&self, limits: &Limits) -> Result<(), Error> {
        let wanted = limits.wanted(space(&self.root)?);
        if wanted == 0 && limits.max_age.is_zero() {
            return Ok(());
        }
        let stored = self.store.stored().await?;
        let mut freed = 0;
        for image in outdated(&stored, limits, wanted) {
            if self.store.remove_unused(&image.digest).await? {
                info!(image = image.digest, names = ?image.names, bytes = image.size, "removed from the store");
                freed += image.size;
            }
        }
        match freed < wanted {
            true => Err(Error::TooLittle { wanted, freed }),
            false => Ok(()),
        }
    }

    /// Digests of what the node's pods run, are about to run, or have as volumes.
    async fn used_here(&self, entries: &[Entry]) -> Result<BTreeSet<String>, Error> {
        let mut used = self.in_hand();
        for entry in entries.iter().filter(|entry| entry.holds_files()) {
            used.extend(entry.image_digests().map(str::to_owned));
            for name in entry.image_volumes() {
                // A name that isn't one has mounted nothing.
                let Ok(reference) = name.parse::<Reference>() else {
                    continue;
                };
                if let Some(image) = self.store.find(&reference).await? {
                    used.insert(image.digest);
                }
            }
        }
        Ok(used)
    }

    /// The store's images as the node's status lists them: read when one was pulled here, and once a minute for what
    /// others pull.
    ///
    /// # Errors
    /// If the store can't be read.
    pub async fn listed(&self) -> Result<Vec<ContainerImage>, store::Error> {
        let known = self.listing().clone();
        if let Some(images) = known {
            return Ok(images);
        }
        let images = listed(self.store.stored().await?);
        *self.listing() = Some(images.clone());
        Ok(images)
    }

    /// The store has changed, or may have.
    pub(super) fn list_anew(&self) {
        *self.listing() = None;
    }

    fn listing(&self) -> MutexGuard<'_, Option<Vec<ContainerImage>>> {
        self.listing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The largest, largest first, with at most five names each. Source: pkg/kubelet/nodestatus, Images.
fn listed(mut stored: Vec<Stored>) -> Vec<ContainerImage> {
    stored.retain(|image| !image.names.is_empty());
    stored.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.names.cmp(&b.names)));
    stored.truncate(LISTED);
    let names = |image: &Stored| {
        let references = image.names.iter().filter_map(|name| name.parse().ok());
        let by_digest: BTreeSet<String> = references
            .map(|name: Reference| name.with_digest(&image.digest).to_string())
            .collect();
        let tags = image.names.iter().filter(|name| !name.contains('@'));
        let all = by_digest.into_iter().chain(tags.cloned());
        all.take(5).collect()
    };
    stored
        .iter()
        .map(|image| ContainerImage {
            names: Some(names(image)),
            size_bytes: i64::try_from(image.size).ok(),
        })
        .collect()
}

fn space(path: &Path) -> Result<Space, Error> {
    let stat = statvfs(path).map_err(|errno| Error::Space {
        path: path.display().to_string(),
        source: errno.into(),
    })?;
    let unit = stat.fragment_size();
    Ok(Space {
        capacity: stat.blocks() * unit,
        available: stat.blocks_available() * unit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_lists_its_fifty_largest_images_by_digest_and_by_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let stored = (0..60)
            .map(|n| Stored {
                digest: digest.clone(),
                names: vec![format!("docker.io/library/app:{n}")],
                size: n,
                unused_for: Duration::ZERO,
                claimed: false,
            })
            .collect();
        let all = listed(stored);
        assert_eq!((all.len(), all[0].size_bytes), (50, Some(59)));
        let names = all[0].names.clone().expect("names");
        assert_eq!(
            names,
            [
                format!("docker.io/library/app@{digest}"),
                "docker.io/library/app:59".to_owned()
            ]
        );
    }
}
