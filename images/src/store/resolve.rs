//! Which image a reference names, and who has it.

use std::collections::BTreeSet;

use super::error::{Error, ErrorKind};
use super::{Store, blocking};
use crate::logins;
use crate::manifest::{self, Document, Manifest};
use crate::policy::{Origin, Policy, Subject};
use crate::registries::Registries;
use crate::source::Source;
use crate::source::registry::Registry;
use crate::{Credentials, Event, Progress, Reference};

/// What a registry has under a reference.
pub(super) struct Resolved {
    pub source: Box<dyn Source>,
    /// Digest of what the reference names: an image or an index.
    pub top: String,
    /// Digest of the image.
    pub digest: String,
    pub manifest: Manifest,
}

impl Resolved {
    /// Says what is about to be pulled.
    pub fn announce(&self, progress: &dyn Progress) {
        progress.event(Event::Resolved {
            digest: self.digest.clone(),
            layers: self.manifest.layers.len(),
            bytes: self.manifest.layers_size(),
        });
    }
}

impl Store {
    /// Asks the registry with `secret`, or with each of the user's own logins there, and then with none; the policy judges what
    /// it has.
    pub(super) async fn resolve(
        &self,
        reference: &Reference,
        secret: Option<&Credentials>,
    ) -> Result<Resolved, Error> {
        let registries = match &self.config.registries {
            Some(path) => Registries::load(path)?,
            None => Registries::default(),
        };
        let mut first_refusal = None;
        if secret.is_none() {
            for login in logins::find(&self.config.logins, reference).await {
                match self.ask(&registries, reference, Some(&login)).await {
                    Err(e) if e.kind() == ErrorKind::Unauthorized => {
                        first_refusal.get_or_insert(e);
                    }
                    other => return other,
                }
            }
        }
        match (
            self.ask(&registries, reference, secret).await,
            first_refusal,
        ) {
            // That a login doesn't do says more than that one is needed.
            (Err(e), Some(refusal)) if e.kind() == ErrorKind::Unauthorized => Err(refusal),
            (answer, _) => answer,
        }
    }

    /// Asks the registry's endpoints, one after the other, with `secret` where that may be shown.
    async fn ask(
        &self,
        registries: &Registries,
        reference: &Reference,
        secret: Option<&Credentials>,
    ) -> Result<Resolved, Error> {
        let mut failures = Vec::new();
        for endpoint in registries.plan_endpoints(reference) {
            match Registry::connect(&endpoint, reference, secret).await {
                Err(e) => failures.push(e),
                Ok(registry) => match registry.manifest(None).await {
                    Err(e) => failures.push(e),
                    Ok(top) => {
                        let resolved = choose(reference, Box::new(registry), top).await?;
                        self.judge(Origin::Registry, reference, &resolved).await?;
                        return Ok(resolved);
                    }
                },
            }
        }
        Err(Error::Endpoints {
            reference: reference.to_string(),
            failures,
        })
    }

    /// Whether the policy lets the image in.
    pub(super) async fn judge(
        &self,
        origin: Origin<'_>,
        reference: &Reference,
        resolved: &Resolved,
    ) -> Result<(), Error> {
        let Some(path) = self.config.policy.clone() else {
            return Ok(());
        };
        let policy = blocking(move || Ok(Policy::load(&path)?)).await?;
        let subject = Subject {
            origin,
            reference,
            digests: [&resolved.top, &resolved.digest],
        };
        let refused = |refusal| Error::Refused {
            reference: reference.to_string(),
            refusal,
        };
        let Some(wanted) = policy.judge(&subject).map_err(refused)? else {
            return Ok(());
        };
        let mut signatures = Vec::new();
        for digest in BTreeSet::from(subject.digests) {
            let found = resolved.source.signatures(digest).await;
            signatures.extend(found.map_err(|source| Error::Blob {
                name: reference.to_string(),
                source: Box::new(source),
            })?);
        }
        wanted.check(&subject, &signatures).map_err(refused)
    }
}

/// Takes the manifest `top` that `source` gave for `reference`, or of an index the one for this machine.
pub(super) async fn choose(
    reference: &Reference,
    source: Box<dyn Source>,
    (bytes, top): (Vec<u8>, String),
) -> Result<Resolved, Error> {
    let error = |source| Error::Manifest {
        name: reference.to_string(),
        source,
    };
    manifest::digest_hex(&top).map_err(error)?;
    let (digest, document) = match manifest::parse(&bytes).map_err(error)? {
        image @ Document::Image(_) => (top.clone(), image),
        Document::Index(entries) => {
            let entry =
                manifest::choose(&entries, manifest::machine_architecture()).map_err(error)?;
            let fetched = source.manifest(Some(&entry.digest)).await;
            let (bytes, _) = fetched.map_err(|source| Error::Blob {
                name: reference.to_string(),
                source: Box::new(source),
            })?;
            (
                entry.digest.clone(),
                manifest::parse(&bytes).map_err(error)?,
            )
        }
    };
    match document {
        Document::Image(manifest) => Ok(Resolved {
            source,
            top,
            digest,
            manifest,
        }),
        Document::Index(_) => Err(error(manifest::Error::Unsupported {
            version: 2,
            media_type: "an index in an index".to_owned(),
        })),
    }
}
