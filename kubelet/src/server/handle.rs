//! One request: checked, routed, answered.

use std::path::PathBuf;
use std::sync::Arc;

use futures::stream;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::upgrade::Upgraded;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use time::OffsetDateTime;

use super::access::{AccessError, ContainerQuery, ContainerRef, PodAccess, Run};
use super::auth::{Denial, Identity, Reviewer};
use super::config::ServerConfig;
use super::forward;
use super::logs::follow::Follower;
use super::logs::options::LogOptions;
use super::query::Query;
use super::remote::upgrade::{PORT_FORWARD, REMOTE_COMMAND, Spoken, Upgrade, plan};
use super::remote::{Channels, Wanted, attach, exec, spdy, websocket};
use super::respond::{self, Body};
use super::route::{Route, parse};
use crate::text;
use crate::usage::{Usage, exposition, summary};

/// Answers requests.
pub struct Handler {
    access: Arc<dyn PodAccess>,
    reviewer: Reviewer,
    /// Where execs' FIFOs are.
    exec_dir: PathBuf,
    started: OffsetDateTime,
}

/// An answer that isn't what was asked for.
type Refused = Box<Response<Body>>;

fn refuse(status: StatusCode, text: impl Into<String>) -> Refused {
    Box::new(respond::text(status, text))
}

impl Handler {
    pub fn new(config: ServerConfig, client: kube::Client, access: Arc<dyn PodAccess>) -> Self {
        let exec_dir = config.run_dir.join("exec");
        // What an earlier kubelet left: its callers are gone, so are the processes' readers.
        match std::fs::remove_dir_all(&exec_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, dir = %exec_dir.display(), "can't remove old FIFOs");
            }
            _ => {}
        }
        Self {
            access,
            reviewer: Reviewer::new(client, config.node_name),
            exec_dir,
            started: OffsetDateTime::now_utc(),
        }
    }

    pub async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        certificate: Option<Arc<Identity>>,
    ) -> Response<Body> {
        match self.answer(request, certificate).await {
            Ok(response) => response,
            Err(refused) => *refused,
        }
    }

    async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        certificate: Option<Arc<Identity>>,
    ) -> Result<Response<Body>, Refused> {
        self.check(&request, certificate).await?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        match parse(request.method(), request.uri().path()) {
            Route::Healthz => Ok(respond::text(StatusCode::OK, "ok")),
            Route::Pods => self.pods().await,
            Route::Metrics => Ok(self.metrics().await),
            Route::ResourceMetrics => {
                let page = exposition::page(&self.usage().await?, Timestamp::now());
                Ok(respond::metrics(page))
            }
            Route::ProbeMetrics => Ok(respond::metrics(self.access.probes().await)),
            Route::Configz => {
                let all = self.access.configz().await;
                Ok(respond::json(all.to_string().into_bytes()))
            }
            Route::Summary => {
                let all = summary::summary(&self.usage().await?, Timestamp::now());
                Ok(respond::json(all.to_string().into_bytes()))
            }
            Route::Logs(container) => self.logs(container, &query).await,
            Route::Exec(container) => {
                let command: Vec<String> = query.all("command").map(str::to_owned).collect();
                if command.is_empty() {
                    return Err(refuse(StatusCode::BAD_REQUEST, "no command given"));
                }
                let wanted = wanted(&query)?;
                let (_, run) = self.running(&container).await?;
                let dir = self.exec_dir.clone();
                remote(&mut request, wanted, move |channels| {
                    exec::serve(run, command, wanted, channels, dir)
                })
            }
            Route::Attach(container) => {
                let wanted = wanted(&query)?;
                let (found, run) = self.running(&container).await?;
                if wanted.tty && !found.tty {
                    let text = format!("container {} has no terminal", container.container);
                    return Err(refuse(StatusCode::BAD_REQUEST, text));
                }
                if wanted.stdin && run.stdin.is_none() {
                    // As where a container has no stdin: what is typed goes nowhere.
                    tracing::debug!(container = container.container, "attach without stdin");
                }
                let access = Arc::clone(&self.access);
                let target = attach::Target {
                    query: container,
                    run,
                    tty: found.tty,
                    stdin_once: found.stdin_once,
                };
                remote(&mut request, wanted, move |channels| {
                    attach::serve(access, target, wanted, channels)
                })
            }
            Route::PortForward {
                namespace,
                pod,
                uid,
            } => {
                let found = self.access.pod(&namespace, &pod, uid.as_deref()).await;
                let found = found.map_err(|error| missing(&error))?;
                if !found.ready {
                    let text = format!("pod {pod} is not running");
                    return Err(refuse(StatusCode::BAD_REQUEST, text));
                }
                let name = format!("{namespace}/{pod}");
                upgrade(&mut request, PORT_FORWARD, move |connection, _| {
                    forward::serve(connection, found.netns, name)
                })
            }
            Route::WrongMethod => Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "wrong method")),
            Route::Unknown => Err(refuse(StatusCode::NOT_FOUND, "404 page not found")),
        }
    }

    /// Who calls, and may they.
    async fn check(
        &self,
        request: &Request<Incoming>,
        certificate: Option<Arc<Identity>>,
    ) -> Result<(), Refused> {
        let checked = async {
            let identity = match certificate {
                Some(identity) => identity,
                None => {
                    let token = bearer(request.headers()).ok_or(Denial::Unknown)?;
                    Arc::new(self.reviewer.authenticate(token).await?)
                }
            };
            let (method, path) = (request.method(), request.uri().path());
            self.reviewer.authorize(&identity, method, path).await
        };
        checked.await.map_err(|denial| {
            let status = match denial {
                Denial::Unknown => StatusCode::UNAUTHORIZED,
                Denial::Forbidden { .. } => StatusCode::FORBIDDEN,
                Denial::Api(_) | Denial::TimedOut => {
                    tracing::warn!(error = %denial, "can't check a caller");
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            };
            refuse(status, denial.to_string())
        })
    }

    async fn pods(&self) -> Result<Response<Body>, Refused> {
        let list: List<Pod> = List {
            items: self.access.pods().await,
            ..List::default()
        };
        match serde_json::to_vec(&list) {
            Ok(json) => Ok(respond::json(json)),
            Err(error) => Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }

    async fn metrics(&self) -> Response<Body> {
        let pods = self.access.pods().await.len();
        let start = self.started.unix_timestamp();
        respond::metrics(format!(
            "# HELP process_start_time_seconds Start of the process since 1970, in seconds.\n\
             # TYPE process_start_time_seconds gauge\n\
             process_start_time_seconds {start}\n\
             # HELP kubelet_desired_pods Pods bound to this node.\n\
             # TYPE kubelet_desired_pods gauge\n\
             kubelet_desired_pods {pods}\n"
        ))
    }

    async fn usage(&self) -> Result<Usage, Refused> {
        let usage = self.access.usage().await;
        usage.map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    }

    async fn container(&self, query: &ContainerQuery) -> Result<ContainerRef, Refused> {
        let found = self.access.container(query).await;
        found.map_err(|error| missing(&error))
    }

    /// A container with its running process.
    async fn running(&self, query: &ContainerQuery) -> Result<(ContainerRef, Run), Refused> {
        let mut found = self.container(query).await?;
        match found.current.take().filter(|run| run.running) {
            Some(run) => Ok((found, run)),
            None => Err(refuse(
                StatusCode::BAD_REQUEST,
                format!(
                    "container {} is not running{}",
                    query.container,
                    why(&found)
                ),
            )),
        }
    }

    async fn logs(
        &self,
        container: ContainerQuery,
        query: &Query,
    ) -> Result<Response<Body>, Refused> {
        let options = LogOptions::parse(query, OffsetDateTime::now_utc())
            .map_err(|error| refuse(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
        let mut found = self.container(&container).await?;
        let (name, pod) = (&container.container, &container.pod);
        let run = if options.previous {
            found.previous.take().ok_or_else(|| {
                format!("previous terminated container {name:?} in pod {pod:?} not found")
            })
        } else {
            found.current.take().ok_or_else(|| {
                format!(
                    "container {name:?} in pod {pod:?} is waiting to start{}",
                    why(&found)
                )
            })
        };
        let run = run.map_err(|text| refuse(StatusCode::BAD_REQUEST, text))?;
        let mut follower = Follower::new(Arc::clone(&self.access), container, run, options);
        // The first pieces now: what can't be read at all is an error, not an empty answer. Not
        // while following, where they may be long in coming.
        let first = if query.is_set("follow") {
            None
        } else {
            match follower.next().await {
                Ok(pieces) => Some(pieces.unwrap_or_default()),
                Err(error) => return Err(refuse(StatusCode::BAD_REQUEST, text::chain(&error))),
            }
        };
        let pieces = stream::try_unfold((follower, first), |(mut follower, first)| async move {
            let pieces = match first {
                Some(pieces) => Some(pieces),
                None => follower.next().await.map_err(std::io::Error::other)?,
            };
            let Some(pieces) = pieces else {
                return Ok(None);
            };
            let all: Vec<u8> = pieces
                .iter()
                .flat_map(|(_, piece)| piece.iter().copied())
                .collect();
            Ok(Some((bytes::Bytes::from(all), (follower, None))))
        });
        Ok(respond::stream(pieces))
    }
}

fn why(container: &ContainerRef) -> String {
    container
        .waiting
        .as_ref()
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default()
}

fn wanted(query: &Query) -> Result<Wanted, Refused> {
    Wanted::parse(query).ok_or_else(|| {
        let text = "you must specify at least 1 of stdin, stdout, stderr";
        refuse(StatusCode::BAD_REQUEST, text)
    })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn missing(error: &AccessError) -> Refused {
    let status = match error {
        AccessError::NoSuchPod { .. } | AccessError::NoSuchContainer { .. } => {
            StatusCode::NOT_FOUND
        }
        AccessError::NotReady => StatusCode::SERVICE_UNAVAILABLE,
    };
    refuse(status, error.to_string())
}

/// A caller's connection, ours after the upgrade.
type Connection = TokioIo<Upgraded>;

/// Answers 101, and once the connection is ours, serves it.
fn upgrade<S, F>(
    request: &mut Request<Incoming>,
    spoken: Spoken,
    serve: S,
) -> Result<Response<Body>, Refused>
where
    S: FnOnce(Connection, Upgrade) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let how = plan(request.headers(), spoken)
        .map_err(|refusal| refuse(StatusCode::BAD_REQUEST, refusal.to_string()))?;
    let upgraded = hyper::upgrade::on(request);
    let headers: Vec<(&'static str, String)> = match &how {
        Upgrade::Spdy { protocol } => vec![
            ("connection", "Upgrade".to_owned()),
            ("upgrade", "SPDY/3.1".to_owned()),
            ("x-stream-protocol-version", (*protocol).to_owned()),
        ],
        Upgrade::WebSocket { protocol, accept } => {
            let mut headers = vec![
                ("connection", "Upgrade".to_owned()),
                ("upgrade", "websocket".to_owned()),
                ("sec-websocket-accept", accept.clone()),
            ];
            if !protocol.name.is_empty() {
                headers.push(("sec-websocket-protocol", protocol.name.to_owned()));
            }
            headers
        }
    };
    tokio::spawn(async move {
        match upgraded.await {
            Ok(connection) => serve(TokioIo::new(connection), how).await,
            Err(error) => tracing::debug!(%error, "an upgrade failed"),
        }
    });
    Ok(respond::switch(&headers))
}

/// Upgrades to a process's streams.
fn remote<S, F>(
    request: &mut Request<Incoming>,
    wanted: Wanted,
    serve: S,
) -> Result<Response<Body>, Refused>
where
    S: FnOnce(Channels) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    upgrade(request, REMOTE_COMMAND, move |connection, how| async move {
        let channels = match how {
            Upgrade::Spdy { .. } => match spdy::open(connection, wanted).await {
                Ok(channels) => channels,
                Err(error) => {
                    tracing::debug!(%error, "no streams came");
                    return;
                }
            },
            Upgrade::WebSocket { protocol, .. } => {
                websocket::open(connection, wanted, protocol).await
            }
        };
        serve(channels).await;
    })
}
