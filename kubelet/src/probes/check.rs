//! One try of a probe or hook, by exec, HTTP, TCP or gRPC.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{Subject, grpc};
use crate::{exec, text};

/// Bytes of an answer that are read; the stock kubelet's limit.
const MAX_BODY: usize = 10 * 1024;

/// What one try found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Success,
    /// The container's answer is no; what it said.
    Failure(String),
    /// It couldn't be asked.
    Error(String),
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("no port {0:?} in the container")]
    NoPort(String),
    #[error("{0:?} is no address")]
    NoAddress(String),
    #[error("can't connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("can't speak TLS with {address}")]
    Tls {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("GET {url}")]
    Http {
        url: String,
        #[source]
        source: hyper::Error,
    },
    #[error("the probe's URL or headers make no request")]
    Request(#[from] hyper::http::Error),
}

/// What probes call themselves.
pub const USER_AGENT: &str = "kube-probe/1.36";

/// One try, within `limit`.
pub async fn probe(subject: &Subject, probe: &Probe, limit: Duration) -> Verdict {
    if let Some(action) = &probe.exec {
        return exec_probe(subject, action, limit).await;
    }
    if let Some(action) = &probe.grpc {
        let verdict = grpc::check(&subject.pod_ip, action, limit).await;
        return verdict.unwrap_or_else(|error| Verdict::Failure(text::chain(&error)));
    }
    let attempt = async {
        if let Some(action) = &probe.http_get {
            return http_get(&subject.container, &subject.pod_ip, action).await;
        }
        if let Some(action) = &probe.tcp_socket {
            return tcp(&subject.container, &subject.pod_ip, action).await;
        }
        Ok(Verdict::Error("the probe asks nothing".to_owned()))
    };
    match tokio::time::timeout(limit, attempt).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) => Verdict::Failure(text::chain(&error)),
        Err(_) => Verdict::Failure(
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned(),
        ),
    }
}

async fn exec_probe(subject: &Subject, action: &ExecAction, limit: Duration) -> Verdict {
    let command = action.command.as_deref().unwrap_or_default();
    match exec::run(&subject.target, command, limit).await {
        Ok(output) if output.code == 0 => Verdict::Success,
        Ok(output) => Verdict::Failure(output.text),
        Err(error @ exec::Error::TimedOut(_)) => Verdict::Failure(error.to_string()),
        Err(error) => Verdict::Error(text::chain(&error)),
    }
}

/// A port by number, or by its name in the container's spec.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, Error> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    let shown = match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .ok_or(Error::NoPort(shown))
}

async fn tcp(container: &Container, ip: &str, action: &TCPSocketAction) -> Result<Verdict, Error> {
    let port = port(container, &action.port)?;
    connect(given(&action.host, ip), port).await?;
    Ok(Verdict::Success)
}

/// What the spec says, or the default where it says nothing.
fn given<'a>(said: &'a Option<String>, default: &'a str) -> &'a str {
    said.as_deref()
        .filter(|said| !said.is_empty())
        .unwrap_or(default)
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, Error> {
    TcpStream::connect((host, port))
        .await
        .map_err(|source| Error::Connect {
            address: format!("{host}:{port}"),
            source,
        })
}

/// GET; 200 to 399 is success. TLS certificates aren't checked, as in the stock kubelet.
pub async fn http_get(
    container: &Container,
    ip: &str,
    action: &HTTPGetAction,
) -> Result<Verdict, Error> {
    let port = port(container, &action.port)?;
    let host = given(&action.host, ip);
    let stream = connect(host, port).await?;
    let secure = action.scheme.as_deref() == Some("HTTPS");
    let scheme = if secure { "https" } else { "http" };
    let path = given(&action.path, "/");
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let url = format!("{scheme}://{host}:{port}{path}");
    let mut request = Request::get(&path).header("User-Agent", USER_AGENT);
    let mut has_host = false;
    let mut has_accept = false;
    for header in action.http_headers.iter().flatten() {
        has_host |= header.name.eq_ignore_ascii_case("host");
        has_accept |= header.name.eq_ignore_ascii_case("accept");
        request = request.header(&header.name, &header.value);
    }
    if !has_host {
        request = request.header("Host", format!("{host}:{port}"));
    }
    if !has_accept {
        request = request.header("Accept", "*/*");
    }
    let request = request.header("Connection", "close").body(Empty::new())?;
    if secure {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(trust_all()));
        let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap_or(
            rustls::pki_types::ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()),
        );
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|source| Error::Tls {
                address: format!("{host}:{port}"),
                source,
            })?;
        return exchange(stream, request, url).await;
    }
    exchange(stream, request, url).await
}

async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
    url: String,
) -> Result<Verdict, Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |source| Error::Http {
        url: url.clone(),
        source,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(failed);
    let verdict = match answer {
        Ok(answer) => {
            let status = answer.status();
            if status.is_success() || status.is_redirection() {
                Verdict::Success
            } else {
                // Read, so that the server doesn't see its answer cut off; but no more than it may have to say.
                let body = Limited::new(answer.into_body(), MAX_BODY).collect().await;
                drop(body);
                Verdict::Failure(format!(
                    "HTTP probe failed with statuscode: {}",
                    status.as_u16()
                ))
            }
        }
        Err(error) => {
            connection.abort();
            return Err(error);
        }
    };
    connection.abort();
    Ok(verdict)
}

fn trust_all() -> rustls::ClientConfig {
    rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAll))
        .with_no_client_auth()
}

/// Probes ask whether a server answers, not who it is.
#[derive(Debug)]
struct TrustAll;

impl rustls::client::danger::ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &rustls::pki_types::CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &rustls::pki_types::CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn a_port_may_be_named() {
        let container = serde_json::from_value(
            json!({"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}),
        )
        .expect("container");
        let named = port(&container, &IntOrString::String("http".to_owned()));
        assert_eq!(named.expect("found"), 8080);
        assert!(port(&container, &IntOrString::String("no".to_owned())).is_err());
    }

    /// What a GET makes of a server that answers `head`, and then writes for as long as it can.
    async fn asked(head: &'static str, endless: bool) -> Verdict {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("listener");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut request = [0u8; 1024];
            let _ = stream.read(&mut request).await;
            let mut sent = stream.write_all(head.as_bytes()).await;
            while endless && sent.is_ok() {
                sent = stream.write_all(&[b'x'; 4096]).await;
            }
        });
        let action = HTTPGetAction {
            port: IntOrString::Int(i32::from(port)),
            ..HTTPGetAction::default()
        };
        let container = Container::default();
        let verdict = http_get(&container, "127.0.0.1", &action);
        let verdict = tokio::time::timeout(Duration::from_secs(10), verdict).await;
        verdict.expect("an end").expect("asked")
    }

    #[tokio::test]
    async fn a_500_is_a_failure_and_names_the_status_however_long_its_page() {
        let failed = Verdict::Failure("HTTP probe failed with statuscode: 500".to_owned());
        let empty = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(asked(empty, false).await, failed);
        let endless = "HTTP/1.1 500 Internal Server Error\r\n\r\n";
        assert_eq!(asked(endless, true).await, failed);
    }
}
