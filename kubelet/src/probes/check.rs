//! One try of a probe or hook, by exec, HTTP, TCP or gRPC.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use thiserror::Error;
use tokio::net::TcpStream;

use super::{Subject, grpc, http};
use crate::{exec, text};

/// What one try found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Success,
    /// Success, with something to be said about it.
    Warning(String),
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
    #[error("GET {url}: stopped after {redirects} redirects")]
    Redirects { url: String, redirects: usize },
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
            return http::get(&subject.container, &subject.pod_ip, action).await;
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

impl Verdict {
    pub fn is_success(&self) -> bool {
        matches!(self, Verdict::Success | Verdict::Warning(_))
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
pub fn given<'a>(said: &'a Option<String>, default: &'a str) -> &'a str {
    said.as_deref()
        .filter(|said| !said.is_empty())
        .unwrap_or(default)
}

pub async fn connect(host: &str, port: u16) -> Result<TcpStream, Error> {
    TcpStream::connect((host, port))
        .await
        .map_err(|source| Error::Connect {
            address: format!("{host}:{port}"),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
}
