//! Which image a reference names, and who has it.

use super::Store;
use super::error::Error;
use crate::manifest::{self, Document, Manifest};
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
    /// Asks the registry's endpoints, one after the other, with `secret` where that may be shown.
    pub(super) async fn resolve(
        &self,
        reference: &Reference,
        secret: Option<&Credentials>,
    ) -> Result<Resolved, Error> {
        let registries = match &self.config.registries {
            Some(path) => Registries::load(path)?,
            None => Registries::default(),
        };
        let mut failures = Vec::new();
        for endpoint in registries.plan_endpoints(reference) {
            match Registry::connect(&endpoint, reference, secret).await {
                Err(e) => failures.push(e),
                Ok(registry) => match registry.manifest(None).await {
                    Err(e) => failures.push(e),
                    Ok(top) => return choose(reference, Box::new(registry), top).await,
                },
            }
        }
        Err(Error::Endpoints {
            reference: reference.to_string(),
            failures,
        })
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
