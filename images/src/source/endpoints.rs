//! A registry's endpoints, in their order: what one of them lacks is got from the next.

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::registry::Registry;
use super::{Error, Source, chain};
use crate::manifest::Descriptor;
use crate::policy::signature::Signature;
use crate::progress::{Event, Progress};
use crate::registries::Endpoint;
use crate::{Credentials, Reference};

/// The endpoint that has the manifest of an image, and those to be asked after it: a mirror may have that and not all that
/// belongs to it.
#[derive(Debug)]
pub struct Endpoints {
    reference: Reference,
    secret: Option<Credentials>,
    inner: Vec<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    registry: OnceCell<Registry>,
}

impl Endpoints {
    /// `first` is logged in to; each of `others` is when it is needed, with `secret` where that may be shown.
    pub fn new(
        (endpoint, first): (&Endpoint, Registry),
        others: &[Endpoint],
        reference: &Reference,
        secret: Option<&Credentials>,
    ) -> Self {
        let first = Inner {
            endpoint: endpoint.clone(),
            registry: OnceCell::new_with(Some(first)),
        };
        let others = others.iter().map(|endpoint| Inner {
            endpoint: endpoint.clone(),
            registry: OnceCell::new(),
        });
        Self {
            reference: reference.clone(),
            secret: secret.cloned(),
            inner: std::iter::once(first).chain(others).collect(),
        }
    }

    fn round(&self) -> Round<'_> {
        Round {
            endpoints: self,
            next: 0,
            failures: Vec::new(),
        }
    }
}

/// One question, put to one after the other.
struct Round<'a> {
    endpoints: &'a Endpoints,
    next: usize,
    failures: Vec<Error>,
}

impl<'a> Round<'a> {
    /// The next one that can be spoken to.
    async fn next(&mut self) -> Option<&'a Registry> {
        let Endpoints {
            reference,
            secret,
            inner,
        } = self.endpoints;
        while let Some(Inner { endpoint, registry }) = inner.get(self.next) {
            self.next += 1;
            let connect = || Registry::connect(endpoint, reference, secret.as_ref());
            match registry.get_or_try_init(connect).await {
                Ok(registry) => return Some(registry),
                Err(e) => self.failures.push(e),
            }
        }
        None
    }

    /// What all said.
    fn failure(self) -> Error {
        Error::of_all(self.failures)
    }
}

#[async_trait]
impl Source for Endpoints {
    async fn manifest(&self, digest: Option<&str>) -> Result<(Vec<u8>, String), Error> {
        let mut round = self.round();
        while let Some(registry) = round.next().await {
            match registry.manifest(digest).await {
                Err(e) => round.failures.push(e),
                found => return found,
            }
        }
        Err(round.failure())
    }

    async fn blob(
        &self,
        blob: &Descriptor,
        file: &mut tokio::fs::File,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let mut round = self.round();
        while let Some(registry) = round.next().await {
            if let Some(failure) = round.failures.last() {
                progress.event(Event::Retrying {
                    digest: blob.digest.clone(),
                    cause: chain(failure),
                });
            }
            match registry.blob(blob, file, progress).await {
                Err(e) if !matches!(e, Error::Local { .. }) => round.failures.push(e),
                done => return done,
            }
        }
        Err(round.failure())
    }

    /// Those of the first endpoint that has any. That there are none takes the word of all.
    async fn signatures(&self, digest: &str) -> Result<Vec<Signature>, Error> {
        let mut round = self.round();
        while let Some(registry) = round.next().await {
            match registry.signatures(digest).await {
                Ok(none) if none.is_empty() => {
                    let what = format!("signatures of {digest}");
                    round.failures.push(registry.has_no(&what));
                }
                Err(e) => round.failures.push(e),
                found => return found,
            }
        }
        let is_missing = |failure: &Error| matches!(failure, Error::NotFound { .. });
        match round.failures.iter().all(is_missing) {
            true => Ok(Vec::new()),
            false => Err(round.failure()),
        }
    }
}
