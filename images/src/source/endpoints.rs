//! A registry's endpoints, in their order: what one of them lacks is got from the next.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::registry::{Registry, signatures_of};
use super::{Error, Source, chain};
use crate::manifest::Descriptor;
use crate::policy::signature::Signature;
use crate::progress::{Event, Progress};
use crate::registries::Endpoint;
use crate::{Credentials, Reference};

/// The endpoints from one on, for one image: what the first lacks is got from those after it. A mirror may have a manifest,
/// and not all that belongs to it.
#[derive(Debug, Clone)]
pub struct Endpoints {
    all: Arc<Vec<Inner>>,
    first: usize,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    reference: Reference,
    secret: Option<Credentials>,
    registry: OnceCell<Registry>,
    /// It could not be reached, or broke off time and again: it isn't waited for again.
    given_up: AtomicBool,
}

impl Inner {
    /// Logs in when it is asked first, with the secret where that may be shown.
    async fn registry(&self) -> Result<&Registry, Error> {
        let connect = || Registry::connect(&self.endpoint, &self.reference, self.secret.as_ref());
        let connected = self.registry.get_or_try_init(connect).await;
        connected.inspect_err(|e| self.note(e))
    }

    fn note(&self, failure: &Error) {
        if matches!(failure, Error::Transfer { .. }) {
            self.given_up.store(true, Relaxed);
        }
    }
}

impl Endpoints {
    /// All of `plan`, for `reference`, with `secret`.
    pub fn new(plan: &[Endpoint], reference: &Reference, secret: Option<&Credentials>) -> Self {
        let inner = |endpoint: &Endpoint| Inner {
            endpoint: endpoint.clone(),
            reference: reference.clone(),
            secret: secret.cloned(),
            registry: OnceCell::new(),
            given_up: AtomicBool::new(false),
        };
        Self {
            all: Arc::new(plan.iter().map(inner).collect()),
            first: 0,
        }
    }

    /// These, and what is left of them without the first, and without the first two, and so on.
    pub fn tails(&self) -> impl Iterator<Item = Self> {
        (self.first..self.all.len()).map(|first| Self {
            all: Arc::clone(&self.all),
            first,
        })
    }

    /// The manifest that the image's name has at the first of them; none where that was given up before.
    pub async fn named_by_first(&self) -> Option<Result<(Vec<u8>, String), Error>> {
        let first = self.all.get(self.first)?;
        if first.given_up.load(Relaxed) {
            return None;
        }
        Some(match first.registry().await {
            Ok(registry) => registry.manifest(None).await,
            Err(e) => Err(e),
        })
    }

    fn round(&self) -> Round<'_> {
        Round {
            left: self.all.get(self.first..).unwrap_or_default().iter(),
            failures: Vec::new(),
        }
    }
}

/// One question, put to one after the other.
struct Round<'a> {
    left: std::slice::Iter<'a, Inner>,
    failures: Vec<Error>,
}

impl<'a> Round<'a> {
    /// The next one that can be spoken to.
    async fn next(&mut self) -> Option<(&'a Inner, &'a Registry)> {
        for inner in self.left.by_ref() {
            if inner.given_up.load(Relaxed) {
                let place = inner.endpoint.host.clone();
                self.failures.push(Error::GivenUp { place });
                continue;
            }
            match inner.registry().await {
                Ok(registry) => return Some((inner, registry)),
                Err(e) => self.failures.push(e),
            }
        }
        None
    }

    fn failed(&mut self, inner: &Inner, failure: Error) {
        inner.note(&failure);
        self.failures.push(failure);
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
        while let Some((inner, registry)) = round.next().await {
            match registry.manifest(digest).await {
                Err(e) => round.failed(inner, e),
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
        while let Some((inner, registry)) = round.next().await {
            if let Some(failure) = round.failures.last() {
                progress.event(Event::Retrying {
                    digest: blob.digest.clone(),
                    cause: chain(failure),
                });
            }
            match registry.blob(blob, file, progress).await {
                Err(e) if !matches!(e, Error::Local { .. }) => round.failed(inner, e),
                done => return done,
            }
        }
        Err(round.failure())
    }

    /// Those of the first endpoint that has any. That there are none takes the word of all.
    async fn signatures(&self, digest: &str) -> Result<Vec<Signature>, Error> {
        let mut round = self.round();
        while let Some((inner, registry)) = round.next().await {
            match registry.signatures(digest).await {
                Ok(none) if none.is_empty() => {
                    let what = signatures_of(digest);
                    round.failed(inner, registry.has_no(&what));
                }
                Err(e) => round.failed(inner, e),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::net::TcpListener;

    use super::*;
    use crate::registries::Scheme;

    /// A host that hangs up on everybody, and how often it has.
    async fn deaf() -> (Endpoint, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Relaxed);
                drop(stream);
            }
        });
        let endpoint = Endpoint {
            host,
            scheme: Scheme::Http,
            repository: "app".to_owned(),
            mirror: true,
            credentials: None,
            ca_file: None,
            insecure: false,
        };
        (endpoint, count)
    }

    #[tokio::test]
    async fn one_that_cannot_be_reached_is_asked_once() {
        let (one, asked_one) = deaf().await;
        let (other, asked_other) = deaf().await;
        let reference: Reference = "example.org/app:1".parse().unwrap();
        let endpoints = Endpoints::new(&[one, other], &reference, None);
        let said = async || endpoints.manifest(None).await.unwrap_err();
        let Error::All(failures) = said().await else {
            panic!("both have failed")
        };
        let is_transfer = |it: &Error| matches!(it, Error::Transfer { .. });
        assert!(failures.len() == 2 && failures.iter().all(is_transfer));
        let counts = || [asked_one.load(Relaxed), asked_other.load(Relaxed)];
        let before = counts();
        let again = said().await.to_string();
        assert_eq!(again.matches("was given up").count(), 2, "{again}");
        for tail in endpoints.tails() {
            assert!(tail.named_by_first().await.is_none());
        }
        assert_eq!(counts(), before);
    }
}
