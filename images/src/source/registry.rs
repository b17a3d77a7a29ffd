//! A registry's endpoint, by the OCI distribution protocol.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use oci_client::client::BlobResponse;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::failure::{Class, FIRST_PAUSE, classify, is_busy, pause};
use super::{Error, Source, chain};
use crate::credentials::Credentials;
use crate::layer::hex;
use crate::manifest::{ACCEPTED, Descriptor};
use crate::policy::signature::{self, Signature};
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::registries::{Endpoint, Scheme};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence in the middle of a transfer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a login or a manifest as a whole: a few MiB at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How often something is tried without getting on.
const ATTEMPTS: u32 = 5;
/// Bytes beyond all that came before, to count as getting on.
const GAIN: u64 = 1 << 20;

/// One endpoint, asked for one image with one set of credentials.
pub struct Registry {
    client: Client,
    reference: oci_client::Reference,
    auth: RegistryAuth,
    place: String,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry({} as {:?})", self.place, self.auth)
    }
}

impl Registry {
    /// Logs in to `endpoint` for `reference`, with `secret` where [`Endpoint::login`] allows it.
    pub async fn connect(
        endpoint: &Endpoint,
        reference: &Reference,
        secret: Option<&Credentials>,
    ) -> Result<Self, Error> {
        let place = endpoint.host.clone();
        let client = make_client(endpoint)?;
        let auth = match endpoint.login(secret) {
            None => RegistryAuth::Anonymous,
            Some(Credentials::Basic { username, password }) => {
                RegistryAuth::Basic(username.clone(), password.clone())
            }
            Some(Credentials::Bearer(token)) => RegistryAuth::Bearer(token.clone()),
        };
        let registry = Self {
            reference: reference_at(endpoint, reference),
            client,
            auth,
            place,
        };
        let login =
            registry
                .client
                .auth(&registry.reference, &registry.auth, RegistryOperation::Pull);
        let answered = in_time(login).await;
        answered.map_err(|e| registry.error("a login", e))?;
        Ok(registry)
    }

    /// That it is not there.
    pub(super) fn has_no(&self, what: &str) -> Error {
        Error::NotFound {
            place: self.place.clone(),
            what: what.to_owned(),
        }
    }

    fn error(&self, what: &str, source: OciDistributionError) -> Error {
        let (place, text) = (self.place.clone(), what.to_owned());
        match classify(&source) {
            Class::NotFound => self.has_no(what),
            Class::Unauthorized => Error::Unauthorized {
                place,
                what: text,
                who: match &self.auth {
                    RegistryAuth::Anonymous => "anonymous callers".to_owned(),
                    RegistryAuth::Basic(user, _) => format!("user {user:?}"),
                    RegistryAuth::Bearer(_) => "the bearer of the token given".to_owned(),
                },
                source: Box::new(source),
            },
            Class::Corrupt => Error::Corrupt {
                place,
                what: text,
                reason: source.to_string(),
            },
            Class::Final | Class::MayPass => Error::Transfer {
                place,
                what: text,
                source: Box::new(source),
            },
        }
    }

    /// Asks again what a registry in trouble refuses, with growing pauses.
    async fn patiently<T, F>(&self, what: &str, mut ask: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, OciDistributionError>>,
    {
        let mut attempt = 1;
        loop {
            match in_time(ask()).await {
                Ok(answer) => return Ok(answer),
                // One that can't be reached at all is left to the next endpoint at once.
                Err(e) if attempt < ATTEMPTS && is_busy(&e) => {
                    tokio::time::sleep(pause(attempt, &e)).await;
                    attempt += 1;
                }
                Err(e) => return Err(self.error(what, e)),
            }
        }
    }

    /// One attempt, from where the last one broke off; the outer error is the local disk's.
    async fn download(
        &self,
        download: &mut Download<'_>,
        progress: &dyn Progress,
    ) -> Result<Result<(), Fault>, Error> {
        let blob = download.blob;
        let descriptor = OciDescriptor {
            digest: blob.digest.clone(),
            ..OciDescriptor::default()
        };
        let (client, reference) = (&self.client, &self.reference);
        let response = match download.have {
            0 => client.pull_blob_stream(reference, &descriptor).await,
            have => match client
                .pull_blob_stream_partial(reference, &descriptor, have, None)
                .await
            {
                Ok(BlobResponse::Partial(rest)) => Ok(rest),
                Ok(BlobResponse::Full(whole)) => {
                    download.begin_anew().await?;
                    Ok(whole)
                }
                Err(e) => Err(e),
            },
        };
        let mut stream = match response {
            Ok(response) => response.stream,
            Err(e) => return Ok(Err(Fault::Call(e))),
        };
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) if download.have + chunk.len() as u64 > blob.size => {
                    return Ok(Err(Fault::Corrupt("more bytes came".to_owned())));
                }
                Ok(chunk) => download.write(&chunk, progress).await?,
                // All is there, and there is no rest to ask for: the digest tells.
                Err(_) if download.have == blob.size => break,
                Err(e) => return Ok(Err(Fault::Call(e.into()))),
            }
        }
        download.finish().await
    }

    /// A signed document, whose size the registry alone tells.
    async fn document(
        &self,
        reference: &oci_client::Reference,
        digest: &str,
        what: &str,
    ) -> Result<Vec<u8>, Error> {
        let corrupt = |reason: String| Error::Corrupt {
            place: self.place.clone(),
            what: what.to_owned(),
            reason,
        };
        let descriptor = OciDescriptor {
            digest: digest.to_owned(),
            ..OciDescriptor::default()
        };
        let response = self
            .patiently(what, || {
                self.client.pull_blob_stream(reference, &descriptor)
            })
            .await?;
        let mut stream = response.stream;
        let mut document = Vec::new();
        while let Some(chunk) = stream.next().await {
            document.extend_from_slice(&chunk.map_err(|e| self.error(what, e.into()))?);
            if document.len() as u64 > signature::MAX_BYTES {
                let most = signature::MAX_BYTES;
                return Err(corrupt(format!("a document of more than {most} bytes")));
            }
        }
        let is = format!("sha256:{}", hex(&Sha256::digest(&document)));
        match is == digest {
            true => Ok(document),
            false => Err(corrupt(format!("the digest of {digest} is {is}"))),
        }
    }
}

/// The crate takes an answer as a whole, however slowly it comes.
async fn in_time<T>(
    answer: impl Future<Output = Result<T, OciDistributionError>>,
) -> Result<T, OciDistributionError> {
    let late = |_| {
        let seconds = ANSWER_TIMEOUT.as_secs();
        OciDistributionError::GenericError(Some(format!("no whole answer within {seconds} s")))
    };
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
    answered.map_err(late)?
}

/// A blob's way into its file, over several attempts. What is there was received, and is trusted only when the whole has the
/// digest.
struct Download<'a> {
    blob: &'a Descriptor,
    file: &'a mut tokio::fs::File,
    have: u64,
    hash: Sha256,
}

/// Why an attempt failed.
enum Fault {
    Call(OciDistributionError),
    /// What came is wrong.
    Corrupt(String),
    /// It ended early, and well by its own account.
    Short(u64),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Call(e) => write!(f, "{}", chain(e)),
            Self::Corrupt(reason) => write!(f, "{reason}"),
            Self::Short(have) => write!(f, "it ended after {have} bytes"),
        }
    }
}

impl Download<'_> {
    fn local(&self, source: std::io::Error) -> Error {
        Error::Local {
            what: self.blob.digest.clone(),
            source,
        }
    }

    async fn begin_anew(&mut self) -> Result<(), Error> {
        (self.have, self.hash) = (0, Sha256::new());
        let emptied = async {
            self.file.set_len(0).await?;
            self.file.rewind().await.map(drop)
        };
        emptied.await.map_err(|e| self.local(e))
    }

    async fn write(&mut self, chunk: &[u8], progress: &dyn Progress) -> Result<(), Error> {
        let written = self.file.write_all(chunk).await;
        written.map_err(|e| self.local(e))?;
        self.hash.update(chunk);
        let bytes = chunk.len() as u64;
        self.have += bytes;
        progress.event(Event::Downloaded { bytes });
        Ok(())
    }

    async fn finish(&mut self) -> Result<Result<(), Fault>, Error> {
        let flushed = self.file.flush().await;
        flushed.map_err(|e| self.local(e))?;
        if self.have < self.blob.size {
            return Ok(Err(Fault::Short(self.have)));
        }
        let is = format!("sha256:{}", hex(&self.hash.clone().finalize()));
        Ok(match is == self.blob.digest {
            true => Ok(()),
            false => Err(Fault::Corrupt(format!("its digest is {is}"))),
        })
    }
}

#[async_trait]
impl Source for Registry {
    async fn manifest(&self, digest: Option<&str>) -> Result<(Vec<u8>, String), Error> {
        let reference = match digest {
            Some(digest) => self.reference.clone_with_digest(digest.to_owned()),
            None => self.reference.clone(),
        };
        let what = format!("manifest of {reference}");
        let (bytes, digest) = self
            .patiently(&what, || {
                self.client
                    .pull_manifest_raw(&reference, &self.auth, ACCEPTED)
            })
            .await?;
        Ok((bytes.to_vec(), digest))
    }

    async fn blob(
        &self,
        blob: &Descriptor,
        file: &mut tokio::fs::File,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let what = format!("blob {}", blob.digest);
        let mut download = Download {
            blob,
            file,
            have: 0,
            hash: Sha256::new(),
        };
        download.begin_anew().await?;
        let (mut attempt, mut furthest) = (1, 0);
        loop {
            let Err(fault) = self.download(&mut download, progress).await? else {
                return Ok(());
            };
            let class = match &fault {
                Fault::Call(e) => classify(e),
                Fault::Corrupt(_) => Class::Corrupt,
                Fault::Short(_) => Class::MayPass,
            };
            // A connection that breaks now and then gets on; one that brings nothing, or the same again, is given up.
            if class == Class::MayPass && download.have >= furthest + GAIN {
                attempt = 1;
            }
            furthest = furthest.max(download.have);
            if attempt == ATTEMPTS || !matches!(class, Class::MayPass | Class::Corrupt) {
                return Err(match fault {
                    Fault::Call(e) => self.error(&what, e),
                    fault => Error::Corrupt {
                        place: self.place.clone(),
                        what,
                        reason: format!("{fault}, {} bytes are promised", blob.size),
                    },
                });
            }
            progress.event(Event::Retrying {
                digest: blob.digest.clone(),
                cause: fault.to_string(),
            });
            if class == Class::Corrupt {
                download.begin_anew().await?;
            }
            tokio::time::sleep(match &fault {
                Fault::Call(e) => pause(attempt, e),
                _ => FIRST_PAUSE,
            })
            .await;
            attempt += 1;
        }
    }

    /// Those that cosign and skopeo attach, under the tag `sha256-HEX.sig`.
    async fn signatures(&self, digest: &str) -> Result<Vec<Signature>, Error> {
        let mut reference = oci_client::Reference::with_tag(
            self.reference.registry().to_owned(),
            self.reference.repository().to_owned(),
            signature::tag(digest),
        );
        if self.reference.namespace().is_some() {
            reference.set_mirror_registry(self.reference.resolve_registry().to_owned());
        }
        let what = signatures_of(digest);
        let asked = self
            .patiently(&what, || {
                self.client
                    .pull_manifest_raw(&reference, &self.auth, ACCEPTED)
            })
            .await;
        let bytes = match asked {
            Err(Error::NotFound { .. }) => return Ok(Vec::new()),
            other => other?.0,
        };
        let corrupt = |reason: String| Error::Corrupt {
            place: self.place.clone(),
            what: what.clone(),
            reason,
        };
        let attached: Attached =
            serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
        let count = attached.layers.len();
        if count > signature::MAX_COUNT {
            return Err(corrupt(format!("{count} of them")));
        }
        let mut found = Vec::new();
        for layer in attached.layers {
            let Some(base64) = layer.annotations.get(signature::ANNOTATION) else {
                continue;
            };
            if layer.media_type != signature::MEDIA_TYPE {
                continue;
            }
            found.push(Signature {
                document: self.document(&reference, &layer.digest, &what).await?,
                base64: base64.clone(),
            });
        }
        Ok(found)
    }
}

/// For messages.
pub(super) fn signatures_of(digest: &str) -> String {
    format!("signatures of {digest}")
}

/// The manifest that signatures hang on.
#[derive(Deserialize)]
struct Attached {
    layers: Vec<AttachedLayer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttachedLayer {
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

/// The reference as the endpoint knows it: its own host and repository, and for a mirror the real registry as `ns`.
fn reference_at(endpoint: &Endpoint, reference: &Reference) -> oci_client::Reference {
    let registry = match endpoint.mirror {
        true => reference.registry().to_owned(),
        false => endpoint.host.clone(),
    };
    let repository = endpoint.repository.clone();
    let mut at = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => {
            oci_client::Reference::with_digest(registry, repository, digest.to_owned())
        }
        (None, tag) => oci_client::Reference::with_tag(
            registry,
            repository,
            tag.unwrap_or("latest").to_owned(),
        ),
    };
    if endpoint.mirror {
        at.set_mirror_registry(endpoint.host.clone());
    }
    at
}

fn make_client(endpoint: &Endpoint) -> Result<Client, Error> {
    let error = |reason: String| Error::Tls {
        place: endpoint.host.clone(),
        reason,
    };
    // A second installation is refused; the first one is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // reqwest panics without any root of trust, also for plain HTTP, where oci-client makes its default client.
    let roots = rustls_native_certs::load_native_certs();
    if roots.certs.is_empty() {
        return Err(error(
            "this machine has no CA certificates (SSL_CERT_FILE, SSL_CERT_DIR, /etc/ssl/certs …)"
                .to_owned(),
        ));
    }
    let mut extra = Vec::new();
    if let Some(file) = &endpoint.ca_file {
        let data = fs::read(file)
            .map_err(|e| error(format!("reading ca_file {}: {e}", file.display())))?;
        let (data, encoding) = (data, CertificateEncoding::Pem);
        extra.push(Certificate { encoding, data });
    }
    let env = |names: [&str; 2]| {
        names
            .iter()
            .find_map(|n| std::env::var(n).ok())
            .filter(|v| !v.is_empty())
    };
    let config = ClientConfig {
        protocol: match endpoint.scheme {
            Scheme::Http => ClientProtocol::Http,
            Scheme::Https => ClientProtocol::Https,
        },
        accept_invalid_certificates: endpoint.insecure,
        extra_root_certificates: extra,
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("hpk/", env!("CARGO_PKG_VERSION")),
        https_proxy: env(["https_proxy", "HTTPS_PROXY"]),
        // HTTP_PROXY in capitals is left out, as by curl (httpoxy).
        http_proxy: std::env::var("http_proxy").ok().filter(|v| !v.is_empty()),
        no_proxy: env(["no_proxy", "NO_PROXY"]),
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|e| error(chain(&e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(host: &str, repository: &str, mirror: bool) -> Endpoint {
        Endpoint {
            host: host.into(),
            scheme: Scheme::Https,
            repository: repository.into(),
            mirror,
            credentials: None,
            ca_file: None,
            insecure: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_ends_is_given_up() {
        let begun = tokio::time::Instant::now();
        let error = in_time::<()>(std::future::pending()).await.unwrap_err();
        assert_eq!(begun.elapsed(), ANSWER_TIMEOUT);
        assert!(error.to_string().contains("within 120 s"), "{error}");
        // The next endpoint is asked then, at once.
        assert!(!is_busy(&error) && classify(&error) == Class::Final);
        assert!(in_time(async { Ok(()) }).await.is_ok());
    }

    #[test]
    fn a_mirror_is_told_the_real_registry() {
        let busybox: Reference = "busybox:1".parse().unwrap();
        let at = reference_at(&endpoint("m:5000", "hub/busybox", true), &busybox);
        assert_eq!(at.resolve_registry(), "m:5000");
        assert_eq!(
            (at.repository(), at.tag(), at.namespace()),
            ("hub/busybox", Some("1"), Some("docker.io"))
        );
        let own = reference_at(
            &endpoint("registry-1.docker.io", "library/busybox", false),
            &busybox,
        );
        assert_eq!(
            (own.resolve_registry(), own.namespace()),
            ("registry-1.docker.io", None)
        );
    }
}
