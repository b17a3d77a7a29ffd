//! Probes by the gRPC health checking protocol (github.com/grpc/grpc, doc/health-checking.md),
//! without TLS, as in the stock kubelet.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::GRPCAction;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Status;
use tonic_health::pb::health_client::HealthClient;

use super::check::{Error, USER_AGENT, Verdict};
use crate::text;

/// Asks the server at `ip`, within `limit`, whether the action's service is served.
pub async fn check(ip: &str, action: &GRPCAction, limit: Duration) -> Result<Verdict, Error> {
    let port = u16::try_from(action.port).map_err(|_| Error::NoPort(action.port.to_string()))?;
    let address: IpAddr = ip.parse().map_err(|_| Error::NoAddress(ip.to_owned()))?;
    let address = SocketAddr::new(address, port);
    match tokio::time::timeout(limit, ask(address, action)).await {
        Ok(verdict) => Ok(verdict),
        Err(_) => Ok(Verdict::Failure(format!(
            "timeout: failed to connect service {:?} within {limit:?}: context deadline exceeded",
            address.to_string()
        ))),
    }
}

async fn ask(address: SocketAddr, action: &GRPCAction) -> Verdict {
    let channel = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        endpoint.user_agent(USER_AGENT)?.connect().await
    };
    let channel = match channel.await {
        Ok(channel) => channel,
        Err(error) => {
            return Verdict::Failure(format!(
                "failed to connect service {:?}: {}",
                address.to_string(),
                text::chain(&error)
            ));
        }
    };
    let request = HealthCheckRequest {
        service: action.service.clone().unwrap_or_default(),
    };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) => judge(answer.into_inner().status()),
        Err(status) if status.code() == Code::Unimplemented => Verdict::Failure(format!(
            "this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Err(status) => Verdict::Failure(format!("health rpc failed: {status}")),
    }
}

fn judge(status: Status) -> Verdict {
    match status {
        Status::Serving => Verdict::Success,
        other => Verdict::Failure(format!(
            "service unhealthy (responded with {:?})",
            other.as_str_name()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;
    use tonic::transport::Server;
    use tonic::transport::server::TcpIncoming;
    use tonic_health::ServingStatus;

    /// A health server that serves `up` and doesn't serve `down`; its port.
    async fn serve() -> i32 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let port = listener.local_addr().expect("address").port();
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter
            .set_service_status("up", ServingStatus::Serving)
            .await;
        reporter
            .set_service_status("down", ServingStatus::NotServing)
            .await;
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        i32::from(port)
    }

    async fn verdict(port: i32, service: &str) -> Verdict {
        let action = GRPCAction {
            port,
            service: Some(service.to_owned()),
        };
        check("127.0.0.1", &action, Duration::from_secs(5))
            .await
            .expect("asked")
    }

    #[tokio::test]
    async fn a_service_is_alive_when_its_server_says_so() {
        let port = serve().await;
        assert_eq!(verdict(port, "up").await, Verdict::Success);
        assert_eq!(
            verdict(port, "down").await,
            Verdict::Failure("service unhealthy (responded with \"NOT_SERVING\")".to_owned())
        );
        assert!(matches!(
            verdict(port, "unknown").await,
            Verdict::Failure(_)
        ));
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let action = GRPCAction {
            port: i32::from(listener.local_addr().expect("address").port()),
            service: None,
        };
        let verdict = check("127.0.0.1", &action, Duration::from_millis(200)).await;
        let Ok(Verdict::Failure(message)) = verdict else {
            panic!("{verdict:?}");
        };
        assert!(message.contains("within 200ms"), "{message}");
    }
}
