//! What a request is, in the authoriser's words: a verb on `nodes/SUBRESOURCE` of this node. The
//! table is the stock kubelet's (kubernetes.io: Kubelet authentication/authorization); any one of a
//! path's subresources is enough.

use hyper::Method;

/// The verb for a method; empty for one that no role can name.
pub fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// The subresources that allow a path.
pub fn subresources(path: &str) -> &'static [&'static str] {
    let is_below = |root: &str| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    const TABLE: &[(&str, &[&str])] = &[
        ("/pods", &["pods", "proxy"]),
        ("/runningpods", &["pods", "proxy"]),
        ("/healthz", &["healthz", "proxy"]),
        ("/configz", &["configz", "proxy"]),
        ("/stats", &["stats"]),
        ("/metrics", &["metrics"]),
        ("/logs", &["log"]),
        ("/checkpoint", &["checkpoint"]),
        ("/statusz", &["statusz"]),
        ("/flagz", &["configz"]),
    ];
    TABLE
        .iter()
        .find(|(root, _)| is_below(root))
        .map_or(&["proxy"], |(_, subresources)| *subresources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_and_logs_are_the_proxy() {
        assert_eq!(subresources("/exec/a/b/c"), ["proxy"]);
        assert_eq!(subresources("/containerLogs/a/b/c"), ["proxy"]);
        assert_eq!(verb(&Method::POST), "create");
    }

    #[test]
    fn monitoring_needs_no_more_than_its_own_part() {
        assert_eq!(subresources("/metrics"), ["metrics"]);
        assert_eq!(subresources("/metrics/resource"), ["metrics"]);
        assert_eq!(subresources("/stats/summary"), ["stats"]);
        assert_eq!(subresources("/pods"), ["pods", "proxy"]);
    }

    #[test]
    fn a_path_that_only_begins_alike_is_the_proxy() {
        assert_eq!(subresources("/metricsx"), ["proxy"]);
        assert_eq!(subresources("/logsearch"), ["proxy"]);
    }
}
