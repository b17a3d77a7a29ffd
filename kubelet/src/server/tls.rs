//! The server's TLS: its own certificate, and callers' certificates checked where they show one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::config::ServerConfig as Config;

/// RFC 9113, section 3.2.
pub const HTTP2: &[u8] = b"h2";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read {what} from {}", path.display())]
    Read {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("{} has no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("can't use the certificates of {}", path.display())]
    Authority {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("can't check clients by {}", path.display())]
    Verifier {
        path: PathBuf,
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    #[error("can't use {} with {}", cert.display(), key.display())]
    Pair {
        cert: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

/// HTTP/2 is offered first, as by the stock kubelet. (Over HTTP/1.1 a short answer may reach the API server together with
/// its end. Where it passes logs on over a WebSocket, it then takes them for empty: apimachinery's messageCopy looks at the
/// error of a Read before its bytes.) Upgrades ask for HTTP/1.1.
pub fn server_config(config: &Config) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let ca = &config.client_ca_file;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|source| Error::Authority {
            path: ca.clone(),
            source,
        })?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|source| Error::Verifier {
            path: ca.clone(),
            source,
        })?;
    let pair = |source| Error::Pair {
        cert: config.cert_file.clone(),
        key: config.key_file.clone(),
        source,
    };
    let key = PrivateKeyDer::from_pem_file(&config.key_file).map_err(|source| Error::Read {
        what: "the key",
        path: config.key_file.clone(),
        source,
    })?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&config.cert_file)?, key)
        .map_err(pair)?;
    tls.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |source| Error::Read {
        what: "certificates",
        path: path.to_owned(),
        source,
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    if found.is_empty() {
        return Err(Error::Empty {
            path: path.to_owned(),
        });
    }
    Ok(found)
}
