//! Which image a reference names, and who has it.

use super::error::{Error, ErrorKind};
use super::{Store, blocking};
use crate::logins;
use crate::manifest::{self, Document, Manifest};
use crate::policy::{Origin, Policy, Refusal, Wanted};
use crate::registries::{Endpoint, Registries};
use crate::source::Source;
use crate::source::endpoints::Endpoints;
use crate::{Credentials, Event, Progress, Reference};

/// What a registry has under a reference.
pub(super) struct Resolved {
    pub source: Box<dyn Source>,
    /// Digest of what the reference names: an image or an index.
    pub top: String,
    /// Digest of the image.
    pub digest: String,
    pub manifest: Manifest,
    /// An index has said that it runs here.
    pub fits: bool,
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

/// Whether `name` may be that of the image `digest`, found as or in `top`: a digest in it has to be one of theirs.
pub(super) fn may_name(name: &Reference, top: &str, digest: &str) -> bool {
    name.digest()
        .is_none_or(|given| [top, digest].contains(&given))
}

impl Store {
    /// Asks the registry, if the policy lets the name in: with `secret`; else as registries.yaml says, where it has
    /// credentials for the registry itself; else with each of the user's own logins, and then with none.
    pub(super) async fn resolve(
        &self,
        reference: &Reference,
        secret: Option<&Credentials>,
    ) -> Result<Resolved, Error> {
        let policy = self.policy().await?;
        let wanted = judge(&policy, Origin::Registry, reference)?;
        let registries = match &self.config.registries {
            Some(path) => Registries::load(path)?,
            None => Registries::default(),
        };
        let endpoints = registries.plan_endpoints(reference);
        let resolved = match secret {
            Some(_) => ask(&endpoints, reference, secret).await?,
            None => self.ask_with_logins(&endpoints, reference).await?,
        };
        check(wanted, reference, &resolved).await?;
        Ok(resolved)
    }

    async fn ask_with_logins(
        &self,
        endpoints: &[Endpoint],
        reference: &Reference,
    ) -> Result<Resolved, Error> {
        let own = |endpoint: &Endpoint| !endpoint.mirror && endpoint.credentials.is_some();
        let configured = endpoints.iter().any(own);
        let mut failures = Vec::new();
        if configured {
            match ask(endpoints, reference, None).await {
                Err(e) if is_of_login(&e) => failures.push(e),
                other => return other,
            }
        }
        let logins = logins::find(&self.config.logins, reference).await;
        let none = (!configured).then_some(None);
        for login in logins.iter().map(Some).chain(none) {
            match ask(endpoints, reference, login).await {
                Err(e) if is_of_login(&e) => failures.push(e),
                other => return other,
            }
        }
        // Who may look and finds nothing knows most; that a login doesn't do says more than that one is needed.
        let missing = |e: &Error| e.kind() == ErrorKind::NotFound;
        let told = failures.iter().position(missing).unwrap_or(0);
        Err(failures.swap_remove(told))
    }

    /// The policy as it is now.
    pub(super) async fn policy(&self) -> Result<Policy, Error> {
        match self.config.policy.clone() {
            Some(path) => blocking(move || Ok(Policy::load(&path)?)).await,
            None => Ok(Policy::default()),
        }
    }
}

/// Another login may help: registries hide what one may not see.
fn is_of_login(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::NotFound)
}

/// Asks the registry's endpoints, one after the other, with `secret` where that may be shown: until one has the manifest,
/// and of an index the image's.
async fn ask(
    plan: &[Endpoint],
    reference: &Reference,
    secret: Option<&Credentials>,
) -> Result<Resolved, Error> {
    let mut failures = Vec::new();
    for source in Endpoints::new(plan, reference, secret).tails() {
        let top = match source.named_by_first().await {
            Some(Ok(top)) => top,
            Some(Err(e)) => {
                failures.push(e);
                continue;
            }
            None => continue,
        };
        match choose(reference, Box::new(source), top).await {
            // A mirror's index may be an old one, of which nobody else has anything.
            Err(Error::Blob { source, .. }) => failures.push(*source),
            chosen => return chosen,
        }
    }
    Err(Error::Endpoints {
        reference: reference.to_string(),
        failures,
    })
}

/// Whether the policy lets an image of that name in, and what it wants to see of it.
pub(super) fn judge<'a>(
    policy: &'a Policy,
    origin: Origin<'_>,
    reference: &Reference,
) -> Result<Option<Wanted<'a>>, Error> {
    let judged = policy.judge(origin, reference);
    judged.map_err(|refusal| refused(reference, refusal))
}

/// Whether the image has what the policy wants.
async fn check(
    wanted: Option<Wanted<'_>>,
    reference: &Reference,
    resolved: &Resolved,
) -> Result<(), Error> {
    let Some(wanted) = wanted else {
        return Ok(());
    };
    let mut digests = vec![resolved.top.as_str(), &resolved.digest];
    digests.dedup();
    let (mut signatures, mut failure) = (Vec::new(), None);
    let mut checked = wanted.check(reference, &digests, &signatures);
    for digest in &digests {
        match resolved.source.signatures(digest).await {
            Ok(found) => signatures.extend(found),
            Err(e) => failure = failure.or(Some(e)),
        }
        checked = wanted.check(reference, &digests, &signatures);
        // An index may be signed, and not each image in it.
        if checked.is_ok() {
            return Ok(());
        }
    }
    match failure {
        Some(source) => Err(Error::Blob {
            name: reference.to_string(),
            source: Box::new(source),
        }),
        None => checked.map_err(|refusal| refused(reference, refusal)),
    }
}

pub(super) fn refused(reference: &Reference, refusal: Refusal) -> Error {
    Error::Refused {
        reference: reference.to_string(),
        refusal,
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
    let (digest, document, fits) = match manifest::parse(&bytes).map_err(error)? {
        image @ Document::Image(_) => (top.clone(), image, false),
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
                entry.platform.is_some(),
            )
        }
    };
    match document {
        Document::Image(manifest) => Ok(Resolved {
            source,
            top,
            digest,
            manifest,
            fits,
        }),
        Document::Index(_) => Err(error(manifest::Error::Unsupported {
            version: 2,
            media_type: "an index in an index".to_owned(),
        })),
    }
}
