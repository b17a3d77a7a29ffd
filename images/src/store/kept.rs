//! Claims that a process shows as living for as long as it runs.

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::claims::{BEAT, Claims};
use super::error::Error;

/// Claims that beat until [`Kept::end`].
#[derive(Debug)]
pub struct Kept {
    claims: Claims,
    beating: JoinHandle<()>,
    /// Its end is the beating's.
    stop: oneshot::Sender<()>,
}

impl Claims {
    /// Beats from now on. `failed` hears of a beat that fails; the next one tries again.
    pub fn keep(self, failed: impl Fn(Error) + Send + 'static) -> Kept {
        let (stop, stopped) = oneshot::channel();
        let beating = tokio::spawn(beat(self.clone(), failed, stopped));
        Kept {
            claims: self,
            beating,
            stop,
        }
    }
}

async fn beat(claims: Claims, failed: impl Fn(Error), mut stopped: oneshot::Receiver<()>) {
    let mut beats = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            _ = beats.tick() => {}
        }
        if let Err(error) = claims.beat().await {
            failed(error);
        }
    }
}

impl Kept {
    /// Gives the images back. One that can't be given back ends by itself.
    pub async fn end(self) -> Result<(), Error> {
        let claims = self.claims.clone();
        self.stop().await?;
        claims.end().await
    }

    /// Beats no more, and leaves the claims to who ends them ([`end_of`](super::claims::end_of)), or to their expiry.
    pub async fn stop(self) -> Result<(), Error> {
        // A beat that is under way would write anew what has been ended.
        drop(self.stop);
        let ended = self.beating.await;
        ended.map_err(|e| Error::Interrupted(e.to_string()))
    }
}
