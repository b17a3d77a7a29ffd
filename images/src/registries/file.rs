//! The file's form: read, checked, and turned into [`Registries`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Deserialize;

use super::{HostConfig, Mirror, Registries, Scheme};
use crate::credentials::{Credentials, decode_auth};

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
