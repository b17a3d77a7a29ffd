//! What the store may grow to: beyond that, images that nobody uses leave it, the one that was used longest ago first.

use std::time::Duration;

use super::claims::BEAT;
use super::error::Error;
use super::{Store, Stored};
use crate::source::chain;

/// Younger than this, an image may be another's who is about to claim it.
const YOUNG: Duration = Duration::from_secs(2 * BEAT.as_secs());

impl Store {
    /// After the image `newest` has come: brings the store back to what it may hold. Where that fails, the image is here all the
    /// same, and the log says why.
    pub(super) async fn make_room(&self, newest: &str) {
        let Some(max) = self.config.max_bytes else {
            return;
        };
        match self.shrink(max, newest).await {
            Ok(size) if size > max => tracing::warn!(
                bytes = size,
                max,
                "the image store is larger than it may be: the images in it are in use"
            ),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = chain(&error), "no room was made in the image store");
            }
        }
    }

    async fn shrink(&self, max: u64, newest: &str) -> Result<u64, Error> {
        let all = self.stored().await?;
        let mut size: u64 = all.iter().map(|image| image.size).sum();
        for image in all.iter().filter(|image| may_go(image, newest)) {
            if size <= max {
                break;
            }
            if self.remove_unused(&image.digest).await? {
                tracing::info!(
                    digest = image.digest,
                    bytes = image.size,
                    "an unused image has left the store"
                );
                size -= image.size;
            }
        }
        Ok(size)
    }
}

fn may_go(image: &Stored, newest: &str) -> bool {
    !image.claimed && image.digest != newest && image.unused_for >= YOUNG
}
