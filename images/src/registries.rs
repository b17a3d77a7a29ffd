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

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Deserialize;

use crate::Reference;
use crate::credentials::{Credentials, decode_auth};

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

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It isn't YAML of this form.
    #[error("parsing {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_yaml_ng::Error,
    },
    /// An endpoint that is no `http[s]://host[:port]`.
    #[error(
        "{path}: endpoint {endpoint:?} of mirror {mirror:?} is not http[s]://HOST[:PORT] (use rewrite for paths)"
    )]
    Endpoint {
        /// The file.
        path: PathBuf,
        /// The mirror's key.
        mirror: String,
        /// The endpoint.
        endpoint: String,
    },
    /// A rewrite rule that is no regular expression.
    #[error("{path}: rewrite {pattern:?} of mirror {mirror:?}")]
    Rewrite {
        /// The file.
        path: PathBuf,
        /// The mirror's key.
        mirror: String,
        /// The rule.
        pattern: String,
        /// Why.
        #[source]
        source: Box<regex::Error>,
    },
    /// `auth` is no base64 of `user:password`.
    #[error("{path}: auth of {host:?} is not base64 of user:password")]
    Auth {
        /// The file.
        path: PathBuf,
        /// The config's key.
        host: String,
    },
    /// Client certificates.
    #[error("{path}: client certificates (cert_file, key_file of {host:?}) are not supported yet")]
    ClientCertificate {
        /// The file.
        path: PathBuf,
        /// The config's key.
        host: String,
    },
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RawFile {
    mirrors: Option<BTreeMap<String, Option<RawMirror>>>,
    configs: Option<BTreeMap<String, Option<RawConfig>>>,
    #[serde(rename = "auths")]
    _auths: Option<serde_yaml_ng::Value>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RawMirror {
    #[serde(alias = "endpoints")]
    endpoint: Vec<String>,
    rewrite: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    auth: Option<RawAuth>,
    tls: Option<RawTls>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RawAuth {
    username: String,
    password: String,
    auth: String,
    #[serde(alias = "identitytoken", alias = "identity_token")]
    token: String,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RawTls {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    insecure_skip_verify: bool,
}

impl Registries {
    /// Reads `path`; a file that doesn't exist gives the default: each registry at its own name.
    pub fn load(path: &Path) -> Result<Self, Error> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(Error::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Parses the text of the file at `path` (which stands in errors, and which relative `ca_file`s are relative to).
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let raw: Option<RawFile> =
            serde_yaml_ng::from_str(text).map_err(|source| Error::Parse {
                path: path.to_owned(),
                source,
            })?;
        let raw = raw.unwrap_or_default();
        let mut registries = Self::default();
        for (name, mirror) in raw.mirrors.unwrap_or_default() {
            let mirror = mirror_of(&name, mirror.unwrap_or_default(), path)?;
            registries.mirrors.insert(name, mirror);
        }
        for (host, config) in raw.configs.unwrap_or_default() {
            let config = host_config(&host, config.unwrap_or_default(), path)?;
            registries.configs.insert(host, config);
        }
        Ok(registries)
    }

    /// The endpoints to try for `reference`, in order.
    pub fn plan_endpoints(&self, reference: &Reference) -> Vec<Endpoint> {
        let registry = reference.registry();
        let mirror = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let mut endpoints = Vec::new();
        if let Some(mirror) = mirror {
            let repository = mirror.rewritten(reference.repository());
            for (scheme, host) in &mirror.endpoints {
                endpoints.push(self.endpoint(host, *scheme, &repository, host != registry));
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

fn mirror_of(name: &str, raw: RawMirror, path: &Path) -> Result<Mirror, Error> {
    let mut mirror = Mirror {
        endpoints: Vec::new(),
        rewrites: Vec::new(),
    };
    for endpoint in raw.endpoint {
        let parsed = parse_endpoint(&endpoint).ok_or_else(|| Error::Endpoint {
            path: path.to_owned(),
            mirror: name.to_owned(),
            endpoint: endpoint.clone(),
        })?;
        mirror.endpoints.push(parsed);
    }
    for (pattern, to) in raw.rewrite {
        let regex = regex::Regex::new(&pattern).map_err(|source| Error::Rewrite {
            path: path.to_owned(),
            mirror: name.to_owned(),
            pattern: pattern.clone(),
            source: Box::new(source),
        })?;
        mirror.rewrites.push((regex, braced(&to)));
    }
    Ok(mirror)
}

/// Go's `$1x` means group `1x` in both languages, but people write `$1` before `_` or `-`: brace bare numbers.
fn braced(to: &str) -> String {
    let mut out = String::new();
    let mut chars = to.chars().peekable();
    while let Some(c) = chars.next() {
        out.push(c);
        if c == '$' && chars.peek().is_some_and(char::is_ascii_digit) {
            out.push('{');
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                out.push(d);
            }
            out.push('}');
        }
    }
    out
}

fn parse_endpoint(endpoint: &str) -> Option<(Scheme, String)> {
    let (scheme, rest) = match endpoint.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(_) => return None,
        None => (Scheme::Https, endpoint),
    };
    let host = rest.trim_end_matches('/');
    let host = host.strip_suffix("/v2").unwrap_or(host);
    let plain = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
    plain.then(|| (scheme, host.to_owned()))
}

fn host_config(host: &str, raw: RawConfig, path: &Path) -> Result<HostConfig, Error> {
    let tls = raw.tls.unwrap_or_default();
    if tls.cert_file.is_some() || tls.key_file.is_some() {
        return Err(Error::ClientCertificate {
            path: path.to_owned(),
            host: host.to_owned(),
        });
    }
    let auth = raw.auth.unwrap_or_default();
    let credentials = if !auth.token.is_empty() {
        Some(Credentials::Bearer(auth.token))
    } else if !auth.auth.is_empty() {
        let decoded = decode_auth(&auth.auth).ok_or_else(|| Error::Auth {
            path: path.to_owned(),
            host: host.to_owned(),
        })?;
        Some(decoded)
    } else if !auth.username.is_empty() {
        Some(Credentials::Basic {
            username: auth.username,
            password: auth.password,
        })
    } else {
        None
    };
    let beside = path.parent().unwrap_or(Path::new("."));
    Ok(HostConfig {
        credentials,
        ca_file: tls
            .ca_file
            .filter(|f| !f.as_os_str().is_empty())
            .map(|f| beside.join(f)),
        insecure: tls.insecure_skip_verify,
    })
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
    fn mistakes_are_named() {
        assert!(error("mirrors: {a: {endpoint: [\"ftp://x\"]}}").contains("ftp://x"));
        assert!(error("mirrors: {a: {endpoint: [\"https://x/path\"]}}").contains("use rewrite"));
        assert!(error("mirrors: {a: {rewrite: {\"(\": x}}}").contains("\"(\""));
        assert!(error("mirrorz: {}").contains("/h/registries.yaml"));
        assert!(error("configs: {a: {tls: {cert_file: x}}}").contains("not supported"));
    }
}
