//! The kubelet's HTTPS API on port 10250, for the API server: logs, exec, attach, port-forward.
//!
//! Layout:
//! - [`access`] – what the server asks of the rest of the kubelet.
//! - [`config`], [`tls`] – what it is told; certificates.
//! - [`route`], [`query`], [`respond`], [`handle`] – a request, from its path to its answer.
//! - [`auth`] – who calls, and may they.
//! - [`logs`] – CRI log files: tail, follow, rotation.
//! - [`remote`] – exec and attach over an upgraded connection.
//! - [`forward`] – port-forward.
//!
//! # Expected flow
//!
//! [`Server::bind`], then [`Server::run`] until the shutdown.
//!
//! # Guarantees
//!
//! - Every request is authenticated (a certificate of the client CA, or a bearer token by
//!   TokenReview: else 401) and authorised (SubjectAccessReview: else 403), as by the stock kubelet.
//! - What a caller started ends with the caller; nothing here keeps state over a restart.

pub mod access;
pub mod auth;
pub mod config;
pub mod forward;
pub mod handle;
pub mod logs;
pub mod query;
pub mod remote;
pub mod respond;
pub mod route;
pub mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub use access::PodAccess;
pub use config::ServerConfig;
use handle::Handler;

/// How long a caller may take for its TLS handshake, and for a request's head; the API server closes
/// idle connections after 90 s, and it should be the one who does.
const PATIENCE: Duration = Duration::from_secs(120);

/// Requests at a time on one connection of HTTP/2, as with the stock kubelet (Go's default).
const STREAMS: u32 = 250;
/// Between two questions whether the caller at the other end of such a connection is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("can't listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// A server that listens already: callers wait instead of being refused.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    handler: Arc<Handler>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// # Errors
    /// Certificates that can't be used, an address that can't be had.
    pub async fn bind(
        config: ServerConfig,
        client: kube::Client,
        access: Arc<dyn PodAccess>,
    ) -> Result<Self, Error> {
        let tls = tls::server_config(&config)?;
        let address = config.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| Error::Listen { address, source })?;
        Ok(Self {
            listener,
            acceptor: TlsAcceptor::from(tls),
            handler: Arc::new(Handler::new(config, client, access)),
        })
    }

    /// Serves until `shutdown` resolves. Connections that are open then go on until the process ends.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = &mut shutdown => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (acceptor, handler) = (self.acceptor.clone(), Arc::clone(&self.handler));
                    tokio::spawn(async move {
                        if let Err(error) = connection(stream, acceptor, handler).await {
                            tracing::debug!(%peer, %error, "a connection ended early");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, or a caller that went: neither is for ever.
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    handler: Arc<Handler>,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates();
    // The first is the caller's own, and it was verified.
    let identity = certificate
        .and_then(|chain| chain.first())
        .and_then(|own| auth::Identity::from_certificate(own))
        .map(Arc::new);
    let service = service_fn(move |request| {
        let (handler, identity) = (Arc::clone(&handler), identity.clone());
        async move { Ok::<_, std::convert::Infallible>(handler.handle(request, identity).await) }
    });
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
    let (stream, timer) = (TokioIo::new(stream), TokioTimer::new());
    if is_http2 {
        http2::Builder::new(TokioExecutor::new())
            .timer(timer)
            .max_concurrent_streams(STREAMS)
            .keep_alive_interval(KEEP_ALIVE)
            .serve_connection(stream, service)
            .await?;
    } else {
        http1::Builder::new()
            .timer(timer)
            .header_read_timeout(PATIENCE)
            .serve_connection(stream, service)
            .with_upgrades()
            .await?;
    }
    Ok(())
}
