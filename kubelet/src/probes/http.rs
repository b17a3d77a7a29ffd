//! One try by HTTP. Source: pkg/probe/http.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::LOCATION;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, HTTPHeader};
use tokio::io::{AsyncRead, AsyncWrite};

use super::check::{Error, USER_AGENT, Verdict, connect, given, port};

/// Bytes of an answer that are read.
const MAX_BODY: usize = 10 * 1024;
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 10;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Url {
    secure: bool,
    host: String,
    port: u16,
    /// With the query.
    path: String,
}

struct Answer {
    status: StatusCode,
    location: Option<String>,
    body: String,
}

/// GET; 200 to 399 is success. Redirects to the same host are followed, one to another is a success
/// with a warning. TLS certificates aren't checked, as in the stock kubelet.
pub async fn get(
    container: &Container,
    ip: &str,
    action: &HTTPGetAction,
) -> Result<Verdict, Error> {
    let path = given(&action.path, "/");
    let first = Url {
        secure: action.scheme.as_deref() == Some("HTTPS"),
        host: given(&action.host, ip).to_owned(),
        port: port(container, &action.port)?,
        path: if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        },
    };
    let headers = action.http_headers.as_deref().unwrap_or_default();
    let mut url = first.clone();
    for _ in 0..=MAX_REDIRECTS {
        let answer = ask(&url, headers).await?;
        let next = answer.location.as_deref();
        match next.and_then(|location| url.follow(location)) {
            Some(next) if next.host == first.host => url = next,
            _ => return Ok(judge(&answer)),
        }
    }
    Err(Error::Redirects {
        url: first.to_string(),
        redirects: MAX_REDIRECTS,
    })
}

fn judge(answer: &Answer) -> Verdict {
    let status = answer.status;
    if status.is_success() {
        Verdict::Success
    } else if status.is_redirection() {
        let body = &answer.body;
        Verdict::Warning(format!("Probe terminated redirects, Response body: {body}"))
    } else {
        let status = status.as_u16();
        Verdict::Failure(format!("HTTP probe failed with statuscode: {status}"))
    }
}

impl Url {
    /// Where a `Location` leads from here; none if it can't be understood.
    fn follow(&self, location: &str) -> Option<Self> {
        let location = location.split('#').next().unwrap_or_default();
        if !location.contains("://") {
            let path = if location.starts_with('/') {
                location.to_owned()
            } else {
                let here = self.path.split('?').next().unwrap_or_default();
                let (folder, _) = here.rsplit_once('/').unwrap_or_default();
                format!("{folder}/{location}")
            };
            return Some(Self {
                path,
                ..self.clone()
            });
        }
        let uri: Uri = location.parse().ok()?;
        let secure = uri.scheme_str()? == "https";
        let usual = if secure { 443 } else { 80 };
        Some(Self {
            secure,
            host: uri.host()?.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(usual),
            path: uri
                .path_and_query()
                .map_or("/", |path| path.as_str())
                .to_owned(),
        })
    }

    /// Host and port as a URL has them.
    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

async fn ask(url: &Url, headers: &[HTTPHeader]) -> Result<Answer, Error> {
    let mut request = Request::get(&url.path).header("User-Agent", USER_AGENT);
    let has = |name: &str| headers.iter().any(|h| h.name.eq_ignore_ascii_case(name));
    for header in headers {
        request = request.header(&header.name, &header.value);
    }
    if !has("host") {
        request = request.header("Host", url.authority());
    }
    if !has("accept") {
        request = request.header("Accept", "*/*");
    }
    let request = request.header("Connection", "close").body(Empty::new())?;
    let stream = connect(&url.host, url.port).await?;
    if !url.secure {
        return exchange(stream, request, url).await;
    }
    let connector = tokio_rustls::TlsConnector::from(Arc::new(trust_all()));
    let name = rustls::pki_types::ServerName::try_from(url.host.clone()).unwrap_or(
        rustls::pki_types::ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()),
    );
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|source| Error::Tls {
            address: url.authority(),
            source,
        })?;
    exchange(stream, request, url).await
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>, url: &Url) -> Result<Answer, Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |source| Error::Http {
        url: url.to_string(),
        source,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let connection = tokio::spawn(connection);
    let answer = match sender.send_request(request).await {
        Ok(answer) => {
            let status = answer.status();
            let location = answer.headers().get(LOCATION);
            let location = location.and_then(|value| value.to_str().ok());
            let location = location.map(str::to_owned);
            // Read, so that the server doesn't see its answer cut off; but no more than it may have to say.
            let body = Limited::new(answer.into_body(), MAX_BODY).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            Ok(Answer {
                status,
                location: location.filter(|_| is_redirect(status)),
                body: String::from_utf8_lossy(&body).into_owned(),
            })
        }
        Err(error) => Err(failed(error)),
    };
    connection.abort();
    answer
}

/// Those that name another place to look.
fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
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
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What a GET makes of a server that answers one request with each of `heads`, and after the
    /// last writes for as long as it can if `endless`.
    async fn asked(heads: &[&'static str], endless: bool) -> Verdict {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("listener");
        let port = listener.local_addr().expect("address").port();
        let heads = heads.to_vec();
        tokio::spawn(async move {
            for (index, head) in heads.iter().enumerate() {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut request = [0u8; 1024];
                let _ = stream.read(&mut request).await;
                let head = head.replace("PORT", &port.to_string());
                let mut sent = stream.write_all(head.as_bytes()).await;
                while endless && index + 1 == heads.len() && sent.is_ok() {
                    sent = stream.write_all(&[b'x'; 4096]).await;
                }
            }
        });
        let action = HTTPGetAction {
            port: IntOrString::Int(i32::from(port)),
            ..HTTPGetAction::default()
        };
        let container = Container::default();
        let verdict = get(&container, "127.0.0.1", &action);
        let verdict = tokio::time::timeout(Duration::from_secs(10), verdict).await;
        verdict.expect("an end").expect("asked")
    }

    #[tokio::test]
    async fn a_500_is_a_failure_and_names_the_status_however_long_its_page() {
        let failed = Verdict::Failure("HTTP probe failed with statuscode: 500".to_owned());
        let empty = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(asked(&[empty], false).await, failed);
        let endless = "HTTP/1.1 500 Internal Server Error\r\n\r\n";
        assert_eq!(asked(&[endless], true).await, failed);
    }

    #[tokio::test]
    async fn a_redirect_to_the_same_host_is_followed_and_one_to_another_is_told() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let bad = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        let here = "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n";
        let whole =
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:PORT/x\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(asked(&[here, ok], false).await, Verdict::Success);
        assert!(!asked(&[whole, bad], false).await.is_success());
        let away =
            "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 4\r\n\r\ngone";
        let told = "Probe terminated redirects, Response body: gone".to_owned();
        assert_eq!(asked(&[away], false).await, Verdict::Warning(told));
    }

    #[test]
    fn a_location_may_be_whole_absolute_or_relative() {
        let from = Url {
            secure: false,
            host: "10.0.0.1".to_owned(),
            port: 8080,
            path: "/a/b?c=/d".to_owned(),
        };
        let to = |location: &str| from.follow(location).expect("a place").to_string();
        assert_eq!(to("/x?y#z"), "http://10.0.0.1:8080/x?y");
        assert_eq!(to("x"), "http://10.0.0.1:8080/a/x");
        assert_eq!(to("https://h/x"), "https://h:443/x");
        assert_eq!(to("http://[::1]:81"), "http://[::1]:81/");
    }
}
