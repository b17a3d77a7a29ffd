//! Paths to what is served there.

use hyper::Method;

use super::access::ContainerQuery;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Healthz,
    Pods,
    Metrics,
    ResourceMetrics,
    ProbeMetrics,
    Configz,
    Summary,
    Logs(ContainerQuery),
    Exec(ContainerQuery),
    Attach(ContainerQuery),
    PortForward {
        namespace: String,
        pod: String,
        uid: Option<String>,
    },
    /// Known, with another method.
    WrongMethod,
    Unknown,
}

/// Decides by method and path.
pub fn parse(method: &Method, path: &str) -> Route {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let query = |uid: Option<&str>, [namespace, pod, container]: [&str; 3]| ContainerQuery {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: uid.map(str::to_owned),
        container: container.to_owned(),
    };
    let is_get = *method == Method::GET || *method == Method::HEAD;
    let is_stream = is_get || *method == Method::POST;
    let (route, is_allowed) = match parts[..] {
        ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => (Route::Healthz, is_get),
        ["pods"] => (Route::Pods, is_get),
        ["metrics"] => (Route::Metrics, is_get),
        ["metrics", "resource"] => (Route::ResourceMetrics, is_get),
        ["metrics", "probes"] => (Route::ProbeMetrics, is_get),
        ["configz"] => (Route::Configz, is_get),
        ["stats", "summary"] => (Route::Summary, is_get),
        ["containerLogs", namespace, pod, container] => (
            Route::Logs(query(None, [namespace, pod, container])),
            is_get,
        ),
        [kind @ ("exec" | "attach"), namespace, pod, ref rest @ ..] => {
            let query = match *rest {
                [container] => query(None, [namespace, pod, container]),
                [uid, container] => query(Some(uid), [namespace, pod, container]),
                _ => return Route::Unknown,
            };
            let route = if kind == "exec" {
                Route::Exec(query)
            } else {
                Route::Attach(query)
            };
            (route, is_stream)
        }
        ["portForward", namespace, pod, ref rest @ ..] if rest.len() < 2 => {
            let route = Route::PortForward {
                namespace: namespace.to_owned(),
                pod: pod.to_owned(),
                uid: rest.first().map(|uid| (*uid).to_owned()),
            };
            (route, is_stream)
        }
        _ => return Route::Unknown,
    };
    if is_allowed {
        route
    } else {
        Route::WrongMethod
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(uid: Option<&str>) -> ContainerQuery {
        ContainerQuery {
            namespace: "default".into(),
            pod: "web-0".into(),
            uid: uid.map(str::to_owned),
            container: "nginx".into(),
        }
    }

    #[test]
    fn a_uid_may_stand_before_the_container() {
        assert_eq!(
            parse(&Method::POST, "/exec/default/web-0/nginx"),
            Route::Exec(container(None))
        );
        assert_eq!(
            parse(&Method::GET, "/attach/default/web-0/u-1/nginx"),
            Route::Attach(container(Some("u-1")))
        );
    }

    #[test]
    fn logs_are_only_read() {
        let path = "/containerLogs/default/web-0/nginx";
        assert_eq!(parse(&Method::GET, path), Route::Logs(container(None)));
        assert_eq!(parse(&Method::POST, path), Route::WrongMethod);
    }

    #[test]
    fn the_rest_is_unknown() {
        for path in [
            "/",
            "/exec/default/web-0",
            "/containerLogs/a/b/c/d",
            "/run/a/b/c",
            "/configz/x",
        ] {
            assert_eq!(parse(&Method::GET, path), Route::Unknown, "{path}");
        }
    }
}
