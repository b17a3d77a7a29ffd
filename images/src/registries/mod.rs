//! `registries.yaml` in K3s's form (<https://docs.k3s.io/installation/private-registry>) → the endpoints to try.
//!
//! ```yaml
//! mirrors:
//!   docker.io:                       # or "*"
//!     endpoint: ["https://mirror.example.org:5000"]
//!     rewrite: {"^library/(.*)": "hub/$1"}
//! configs:
//!   mirror.example.org:5000:
//!     auth: {username: u, password: p}    # or token, or auth (base64 of u:p)
//!     tls: {ca_file: /path, insecure_skip_verify: false}
//! ```
//!
//! The registry itself comes last, behind its mirrors, as in K3s.
//!
//! - `file`: the file's form, read and checked
//! - here: the plan

mod file;

use std::collections::HashMap;
use std::path::PathBuf;

use crate::Reference;
use crate::credentials::Credentials;

pub use file::Error;

/// The parsed file.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    mirrors: HashMap<String, Mirror>,
    configs: HashMap<String, HostConfig>,
}

#[derive(Debug, Clone)]
struct Mirror {
    endpoints: Vec<(Scheme, String)>,
    rewrites: Vec<(regex::Regex, String)>,
}

#[derive(Debug, Clone, Default)]
struct HostConfig {
    credentials: Option<Credentials>,
    ca_file: Option<PathBuf>,
    insecure: bool,
}

/// How to speak to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS.
    Https,
}

/// One place to ask for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host` or `host:port`.
    pub host: String,
    /// Plain or TLS.
    pub scheme: Scheme,
    /// The repository there, after rewriting.
    pub repository: String,
    /// Whether it stands in for another registry (which is then named to it as `ns`).
    pub mirror: bool,
    /// Credentials of the file.
    pub credentials: Option<Credentials>,
    /// PEM file of further roots of trust.
    pub ca_file: Option<PathBuf>,
    /// Take any certificate.
    pub insecure: bool,
}

impl Registries {
    /// The endpoints to try for `reference`, in order.
    pub fn plan_endpoints(&self, reference: &Reference) -> Vec<Endpoint> {
        let registry = reference.registry();
        let mirror = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let mut endpoints = Vec::new();
        if let Some(mirror) = mirror {
            let repository = mirror.rewritten(reference.repository());
            for (scheme, host) in &mirror.endpoints {
                let is_mirror = host != registry && host != own_host(registry);
                endpoints.push(self.endpoint(host, *scheme, &repository, is_mirror));
            }
        }
        let own = self.endpoint(
            own_host(registry),
            own_scheme(registry),
            reference.repository(),
            false,
        );
        let known = |e: &Endpoint| e.host == own.host && e.repository == own.repository;
        if !endpoints.iter().any(known) {
            endpoints.push(own);
        }
        endpoints
    }

    fn endpoint(&self, host: &str, scheme: Scheme, repository: &str, mirror: bool) -> Endpoint {
        let alias = if host == "registry-1.docker.io" {
            "docker.io"
        } else {
            host
        };
        let config = self.configs.get(host).or_else(|| self.configs.get(alias));
        let config = config.cloned().unwrap_or_default();
        Endpoint {
            host: host.to_owned(),
            scheme,
            repository: repository.to_owned(),
            mirror,
            credentials: config.credentials,
            ca_file: config.ca_file,
            insecure: config.insecure,
        }
    }
}

impl Endpoint {
    /// Whom to log in as: with a pod's pull secret, else as the file says.
    ///
    /// A secret was given for the registry that the image names: a mirror, which somebody else may run, is only shown what
    /// the file has for its own host. (containerd's CRI is less strict: there a secret that names no server goes to all.)
    pub fn login<'a>(&'a self, secret: Option<&'a Credentials>) -> Option<&'a Credentials> {
        secret
            .filter(|_| !self.mirror)
            .or(self.credentials.as_ref())
    }
}

impl Mirror {
    /// The first rule that matches rewrites.
    fn rewritten(&self, repository: &str) -> String {
        self.rewrites
            .iter()
            .find(|(pattern, _)| pattern.is_match(repository))
            .map_or_else(
                || repository.to_owned(),
                |(pattern, to)| pattern.replace(repository, to.as_str()).into_owned(),
            )
    }
}

/// Where a registry of that name really is.
fn own_host(registry: &str) -> &str {
    match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

/// This machine's own registries are plain by default, as for Docker and containerd.
fn own_scheme(registry: &str) -> Scheme {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let local = host == "localhost"
        || host == "[::1]"
        || host
            .parse()
            .is_ok_and(|ip: std::net::Ipv4Addr| ip.is_loopback());
    if local { Scheme::Http } else { Scheme::Https }
}
#[cfg(test)]
mod tests {
    use super::*;

    fn plan(yaml: &str, name: &str) -> Vec<String> {
        let registries = Registries::parse(yaml, "/h/registries.yaml".as_ref()).unwrap();
        registries
            .plan_endpoints(&name.parse().unwrap())
            .iter()
            .map(|e| {
                format!(
                    "{:?} {} {}{}",
                    e.scheme,
                    e.host,
                    e.repository,
                    if e.mirror { " mirror" } else { "" }
                )
            })
            .collect()
    }

    fn error(yaml: &str) -> String {
        Registries::parse(yaml, "/h/registries.yaml".as_ref())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn without_a_file_each_registry_is_asked_itself() {
        assert_eq!(
            plan("", "busybox"),
            ["Https registry-1.docker.io library/busybox"]
        );
        assert_eq!(plan("", "quay.io/a/b"), ["Https quay.io a/b"]);
        assert_eq!(plan("", "localhost:5000/a"), ["Http localhost:5000 a"]);
        assert_eq!(plan("", "127.0.0.1:5000/a"), ["Http 127.0.0.1:5000 a"]);
        assert!(Registries::load("/nonexistent/registries.yaml".as_ref()).is_ok());
    }

    #[test]
    fn mirrors_come_first_and_rewrite() {
        let yaml = "
mirrors:
  docker.io:
    endpoint: [\"http://m1:5000\", \"https://m2/v2/\"]
    rewrite: {\"^library/(.*)\": \"hub/$1_x\"}
";
        assert_eq!(
            plan(yaml, "busybox"),
            [
                "Http m1:5000 hub/busybox_x mirror",
                "Https m2 hub/busybox_x mirror",
                "Https registry-1.docker.io library/busybox",
            ]
        );
        assert_eq!(plan(yaml, "quay.io/a/b").len(), 1);
    }

    #[test]
    fn the_star_is_for_registries_without_their_own_entry() {
        let yaml = "mirrors: {\"*\": {endpoint: [\"http://all:1\"]}, quay.io: {endpoint: [\"http://quay:1\"]}}";
        assert_eq!(plan(yaml, "quay.io/a")[0], "Http quay:1 a mirror");
        assert_eq!(plan(yaml, "ghcr.io/a")[0], "Http all:1 a mirror");
    }

    #[test]
    fn a_registry_named_as_its_own_endpoint_becomes_plain() {
        let yaml = "mirrors: {\"registry.hpk.test:5000\": {endpoint: [\"http://registry.hpk.test:5000\"]}}";
        assert_eq!(
            plan(yaml, "registry.hpk.test:5000/a/b"),
            ["Http registry.hpk.test:5000 a/b"]
        );
    }

    #[test]
    fn configs_are_found_by_host() {
        let yaml = "
configs:
  \"r:5000\": {auth: {username: u, password: p}, tls: {ca_file: ca.pem, insecure_skip_verify: true}}
  docker.io: {auth: {auth: dTpw}}
";
        let registries = Registries::parse(yaml, "/h/registries.yaml".as_ref()).unwrap();
        let at = |name: &str| registries.plan_endpoints(&name.parse().unwrap()).remove(0);
        let basic = Credentials::Basic {
            username: "u".into(),
            password: "p".into(),
        };
        let own = at("r:5000/a");
        assert_eq!(own.credentials.as_ref(), Some(&basic));
        assert_eq!(
            (own.ca_file, own.insecure),
            (Some("/h/ca.pem".into()), true)
        );
        assert_eq!(at("busybox").credentials, Some(basic));
        assert!(!at("other/x").insecure);
    }

    #[test]
    fn a_pull_secret_is_for_the_registry_and_not_for_its_mirrors() {
        let yaml = "
mirrors:
  docker.io: {endpoint: [\"https://m1\", \"https://m2\", \"https://registry-1.docker.io\"]}
configs:
  m2: {auth: {username: of-m2, password: p}}
";
        let registries = Registries::parse(yaml, "/h/registries.yaml".as_ref()).unwrap();
        let user = |credentials: Option<&Credentials>| match credentials {
            Some(Credentials::Basic { username, .. }) => username.clone(),
            _ => "nobody".to_owned(),
        };
        let secret = Credentials::Basic {
            username: "secret".into(),
            password: "p".into(),
        };
        let logins: Vec<String> = registries
            .plan_endpoints(&"busybox".parse().unwrap())
            .iter()
            .map(|e| format!("{} {}", e.host, user(e.login(Some(&secret)))))
            .collect();
        assert_eq!(
            logins,
            ["m1 nobody", "m2 of-m2", "registry-1.docker.io secret"]
        );
    }

    #[test]
    fn mistakes_are_named() {
        assert!(error("mirrors: {a: {endpoint: [\"ftp://x\"]}}").contains("ftp://x"));
        assert!(error("mirrors: {a: {endpoint: [\"https://x/path\"]}}").contains("use rewrite"));
        assert!(error("mirrors: {a: {rewrite: {\"(\": x}}}").contains("\"(\""));
        assert!(error("mirrorz: {}").contains("/h/registries.yaml"));
        assert!(error("configs: {a: {tls: {cert_file: x}}}").contains("not supported"));
    }
}
