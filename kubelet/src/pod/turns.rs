//! Turns at what keeps processors busy: making sandboxes, and starting containers.
//!
//! Of pods that are asked for at once each would otherwise have its small share of the processors, and all would run at
//! the end of the whole work. In turns the first run after a part of it, and the last no later. Sandboxes and containers
//! have turns of their own, so that a pod whose sandbox is there goes on while others' are being made.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

/// So many at a time for each processor: each waits a part of its time, for a disk or another process.
const FOR_EACH_PROCESSOR: usize = 2;
/// At least so many, whatever the processors.
const FEWEST: usize = 4;
/// A turn ends after this at the latest, so that what hangs doesn't hold up others for ever.
const LONGEST: Duration = Duration::from_secs(30);

/// The node's turns.
#[derive(Debug)]
pub struct Turns {
    sandboxes: Arc<Semaphore>,
    containers: Arc<Semaphore>,
}

/// A turn, until dropped or too long.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code)] oneshot::Sender<()>);

impl Turns {
    pub fn new(processors: usize) -> Self {
        let many = processors.saturating_mul(FOR_EACH_PROCESSOR).max(FEWEST);
        let many = many.min(Semaphore::MAX_PERMITS);
        Self {
            sandboxes: Arc::new(Semaphore::new(many)),
            containers: Arc::new(Semaphore::new(many)),
        }
    }

    /// For making a sandbox; first come, first served. None if it is `unwanted` before.
    pub async fn sandbox(&self, unwanted: &CancellationToken) -> Option<Turn> {
        turn(&self.sandboxes, unwanted).await
    }

    /// For starting a container.
    pub async fn container(&self, unwanted: &CancellationToken) -> Option<Turn> {
        turn(&self.containers, unwanted).await
    }
}

async fn turn(of: &Arc<Semaphore>, unwanted: &CancellationToken) -> Option<Turn> {
    let permit = unwanted.run_until_cancelled(Arc::clone(of).acquire_owned());
    // It is never closed.
    let permit: OwnedSemaphorePermit = permit.await?.ok()?;
    let (turn, ended) = oneshot::channel();
    tokio::spawn(async move {
        // Either way it is over.
        let _ = tokio::time::timeout(LONGEST, ended).await;
        drop(permit);
    });
    Some(Turn(turn))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// As many turns as there are at a time.
    async fn take_all(of: &Arc<Semaphore>, unwanted: &CancellationToken) -> Vec<Turn> {
        let mut taken = Vec::new();
        for _ in 0..of.available_permits() {
            taken.push(turn(of, unwanted).await.expect("a turn"));
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_until_another_ends_or_was_too_long() {
        let (turns, wanted) = (Turns::new(1), CancellationToken::new());
        let mut taken = take_all(&turns.containers, &wanted).await;
        assert_eq!(taken.len(), FEWEST);
        let begun = Instant::now();
        drop(turns.sandbox(&wanted).await.expect("a turn"));
        drop(taken.pop());
        let _again = turns.container(&wanted).await.expect("a turn");
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let _next = turns.container(&wanted).await.expect("a turn");
        assert_eq!(begun.elapsed(), LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_longer_wanted_gives_its_place_up() {
        let (turns, unwanted) = (Turns::new(1), CancellationToken::new());
        let _taken = take_all(&turns.sandboxes, &unwanted).await;
        let begun = Instant::now();
        let (waited, ()) = tokio::join!(turns.sandbox(&unwanted), async { unwanted.cancel() });
        assert!(waited.is_none());
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
