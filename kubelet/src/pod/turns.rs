//! Turns at what keeps processors busy: making sandboxes, and starting containers.
//!
//! Of pods that are asked for at once each would otherwise have its small share of the processors, and all would run at
//! the end of the whole work. In turns the first run after a part of it, and the last no later. Sandboxes and containers
//! have turns of their own, so that a pod whose sandbox is there goes on while others' are being made.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// So many at a time for each processor: each waits a part of its time, for a disk or another process.
const FOR_EACH_PROCESSOR: usize = 2;
/// At least so many, whatever the processors.
const FEWEST: usize = 4;
/// Longest wait for a turn: what hangs holds up others no longer than this.
const PATIENCE: Duration = Duration::from_secs(30);

/// The node's turns.
#[derive(Debug)]
pub struct Turns {
    sandboxes: Semaphore,
    containers: Semaphore,
}

/// A turn, until dropped; none where it was waited for too long.
#[derive(Debug)]
pub struct Turn<'a>(#[allow(dead_code)] Option<SemaphorePermit<'a>>);

impl Turns {
    pub fn new(processors: usize) -> Self {
        let many = processors.saturating_mul(FOR_EACH_PROCESSOR).max(FEWEST);
        let many = many.min(Semaphore::MAX_PERMITS);
        Self {
            sandboxes: Semaphore::new(many),
            containers: Semaphore::new(many),
        }
    }

    /// For making a sandbox; first come, first served.
    pub async fn sandbox(&self) -> Turn<'_> {
        turn(&self.sandboxes).await
    }

    /// For starting a container.
    pub async fn container(&self) -> Turn<'_> {
        turn(&self.containers).await
    }
}

async fn turn(of: &Semaphore) -> Turn<'_> {
    let waited = tokio::time::timeout(PATIENCE, of.acquire()).await;
    // It is never closed.
    Turn(waited.ok().and_then(Result::ok))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_until_it_is_given_back_or_too_long() {
        let turns = Turns::new(1);
        let mut taken = Vec::new();
        for _ in 0..FEWEST {
            taken.push(turns.container().await);
        }
        let begun = tokio::time::Instant::now();
        drop(turns.sandbox().await);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        drop(taken.pop());
        let again = turns.container().await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(again.0.is_some());
        assert!(turns.container().await.0.is_none());
        assert!(begun.elapsed() >= PATIENCE);
    }
}
