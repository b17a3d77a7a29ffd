//! Looking after the images each minute: claims are renewed, what this node no longer needs is given up, and what nobody
//! needs goes from the store when its disk is nearly full.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, PoisonError};
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
use crate::access::Registry;
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

/// Shows each minute that this node lives and what it uses: whatever else hangs or fails, or its images count as nobody's.
/// Runs for ever.
pub async fn beat(agent: Arc<Agent>) {
    let mut ticker = tokio::time::interval(claims::BEAT);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        if let Err(error) = agent.images.claims.beat().await {
            warn!(
                error = text::chain(&error),
                "can't show which images are used"
            );
        }
    }
}

/// Runs for ever.
pub async fn run(agent: Arc<Agent>, node: Node) {
    let limits = agent.config.image_limits();
    // As often as an image may have become idle, and often enough for what others pull.
    let pause = limits.min_age.clamp(Duration::from_secs(1), claims::BEAT);
    let mut ticker = tokio::time::interval(pause);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticker.tick() => look_after(&agent, &node, &limits).await,
            () = agent.images.pulled.notified() => {}
        }
        if let Err(error) = agent.images.list().await {
            warn!(error = text::chain(&error), "can't list the images");
        }
    }
}

async fn look_after(agent: &Agent, node: &Node, limits: &Limits) {
    let images = &agent.images;
    images.give_up(&agent.registry, limits.min_age).await;
    match images.free(limits).await {
        Ok(()) => {}
        Err(error @ Error::TooLittle { .. }) => {
            let reason = "FreeDiskSpaceFailed";
            agent
                .recorder
                .node(node, Kind::Warning, reason, error.to_string());
        }
        Err(error) => warn!(error = text::chain(&error), "can't look after the images"),
    }
}

impl Images {
    /// Unmounts what this node hasn't used for `min_age`, and claims it no more. What fails is told, and tried again when
    /// this is next called.
    async fn give_up(&self, registry: &Registry, min_age: Duration) {
        let held = self.claims.held();
        let ages = held
            .iter()
            .map(|digest| (digest.as_str(), self.unused_for(digest)));
        for digest in idle(ages, &self.used_here(registry), min_age) {
            let _gate = self.gate.write().await;
            // Taken in hand while the gate was waited for.
            if self.unused_for(&digest) < min_age || self.used_here(registry).contains(&digest) {
                continue;
            }
            if let Err(error) = self.release(&digest).await {
                warn!(
                    image = digest,
                    error = text::chain(&error),
                    "can't give an image up"
                );
            }
        }
    }

    async fn release(&self, digest: &str) -> Result<(), Error> {
        // Overlays that stand on it go on: only new ones would miss it, and they mount it again.
        self.mounter.release(digest).await?;
        Ok(self.claims.release(digest).await?)
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
    fn used_here(&self, registry: &Registry) -> BTreeSet<String> {
        // First: what leaves our hands goes into a pod's record.
        let mut used = self.in_hand();
        for entry in registry.all().iter().filter(|entry| entry.holds_files()) {
            used.extend(entry.image_digests().map(str::to_owned));
        }
        used
    }

    /// The store's images as the node's status lists them, as last read: when one was pulled here, and once a minute for what
    /// others pull. A store that hangs holds up nobody who asks for it.
    pub fn listed(&self) -> Vec<ContainerImage> {
        self.listing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn list(&self) -> Result<(), store::Error> {
        let images = listed(self.store.stored().await?);
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = images;
        Ok(())
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
