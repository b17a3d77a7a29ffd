//! User names and passwords for registries, and their storage form `dockerconfigjson`.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use crate::Reference;
use crate::reference::host_known_as;

/// How to log in to a registry. Its Debug form hides the secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A bearer token of the registry.
    Bearer(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username:?}, …)"),
            Self::Bearer(_) => write!(f, "Bearer(…)"),
        }
    }
}

/// Why a `dockerconfigjson` can't be used. Never holds the secret itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No JSON of the expected form.
    #[error("parsing docker config JSON at line {line}, column {column}")]
    Parse {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// `auth` is not base64 of `user:password`.
    #[error("the auth entry of {0:?} is not base64 of user:password")]
    Auth(String),
}

/// Credentials by registry, as in a `dockerconfigjson` (or the older `dockercfg`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    entries: Vec<(String, Credentials)>,
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "lowercase")]
pub(crate) struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    registrytoken: Option<String>,
}

impl Keyring {
    /// Parses `{"auths": {REGISTRY: {auth | username+password | registrytoken}}}` (a Secret's `.dockerconfigjson`).
    pub fn from_docker_config(json: &[u8]) -> Result<Self, Error> {
        let config: DockerConfig = serde_json::from_slice(json).map_err(without_content)?;
        Self::from_auths(config.auths)
    }

    /// Parses the older form without `auths` around it (a Secret's `.dockercfg`).
    pub fn from_dockercfg(json: &[u8]) -> Result<Self, Error> {
        Self::from_auths(serde_json::from_slice(json).map_err(without_content)?)
    }

    pub(crate) fn from_auths(auths: BTreeMap<String, DockerAuth>) -> Result<Self, Error> {
        let mut entries = Vec::new();
        for (key, auth) in auths {
            if let Some(credentials) = auth.credentials(&key)? {
                entries.push((normalise_key(&key), credentials));
            }
        }
        // The longest, that is the most particular, key is asked first.
        entries.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
        Ok(Self { entries })
    }

    /// Adds another keyring's entries behind this one's (for several pull secrets).
    pub fn extend(&mut self, other: Keyring) {
        self.entries.extend(other.entries);
    }

    /// The credentials to try for `reference`, best first: keys match by host (`*` stands for one label's part) and by path
    /// prefix, as in the kubelet.
    pub fn find<'a>(&'a self, reference: &'a Reference) -> impl Iterator<Item = &'a Credentials> {
        let host = reference.host();
        self.entries
            .iter()
            .filter(move |(key, _)| key_matches(key, &host, reference.repository()))
            .map(|(_, credentials)| credentials)
    }
}

impl DockerAuth {
    fn credentials(self, key: &str) -> Result<Option<Credentials>, Error> {
        if let Some(token) = self.registrytoken.filter(|t| !t.is_empty()) {
            return Ok(Some(Credentials::Bearer(token)));
        }
        if let Some(auth) = self.auth.filter(|a| !a.is_empty()) {
            return decode_auth(&auth)
                .map(Some)
                .ok_or_else(|| Error::Auth(key.to_owned()));
        }
        Ok(match (self.username, self.password) {
            (Some(username), Some(password)) if !username.is_empty() => {
                Some(Credentials::Basic { username, password })
            }
            _ => None,
        })
    }
}

/// Decodes `base64(user:password)`, with padding or without.
pub(crate) fn decode_auth(auth: &str) -> Option<Credentials> {
    let bytes = STANDARD
        .decode(auth.trim())
        .or_else(|_| STANDARD_NO_PAD.decode(auth.trim()))
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Credentials::Basic {
        username: username.to_owned(),
        password: password.trim_end_matches('\0').to_owned(),
    })
}

/// serde_json's message may quote the input, which is a secret here.
pub(crate) fn without_content(error: serde_json::Error) -> Error {
    Error::Parse {
        line: error.line(),
        column: error.column(),
    }
}

/// `https://index.docker.io/v1/` → `docker.io`, `reg:5000/v2/` → `reg:5000`.
pub(crate) fn normalise_key(key: &str) -> String {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let key = key.trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    match key.split_once('/') {
        Some((host, path)) => format!("{}/{path}", host_known_as(host)),
        None => host_known_as(key),
    }
}

/// Whether a keyring's `key`, as written, is for `reference`.
pub(crate) fn is_for(key: &str, reference: &Reference) -> bool {
    key_matches(
        &normalise_key(key),
        &reference.host(),
        reference.repository(),
    )
}

fn key_matches(key: &str, registry: &str, repository: &str) -> bool {
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let labels = |h: &'_ str| h.split(['.', ':']).map(str::to_owned).collect::<Vec<_>>();
    let (wanted, given) = (labels(host), labels(registry));
    let host_matches =
        wanted.len() == given.len() && wanted.iter().zip(&given).all(|(w, g)| glob(w, g));
    let path_matches = repository
        .strip_prefix(path)
        .is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with('/'));
    host_matches && path_matches
}

/// `*` stands for any run of characters.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|i| rest.is_char_boundary(i) && glob(after, &rest[i..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        }
    }

    fn found(json: &str, name: &str) -> Vec<Credentials> {
        let keyring = Keyring::from_docker_config(json.as_bytes()).unwrap();
        let reference: Reference = name.parse().unwrap();
        keyring.find(&reference).cloned().collect()
    }

    #[test]
    fn docker_hub_is_known_by_its_old_key() {
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnE="}}}"#;
        assert_eq!(found(json, "busybox"), [basic("u", "p:q")]);
        assert_eq!(found(json, "quay.io/a/b"), []);
    }

    #[test]
    fn the_most_particular_key_comes_first() {
        let json = r#"{"auths":{"reg:5000":{"username":"all","password":"1"},
            "reg:5000/team":{"username":"team","password":"2"}}}"#;
        assert_eq!(
            found(json, "reg:5000/team/app"),
            [basic("team", "2"), basic("all", "1")]
        );
        assert_eq!(found(json, "reg:5000/teams/app"), [basic("all", "1")]);
    }

    #[test]
    fn a_star_stands_for_part_of_a_label() {
        let json = r#"{"auths":{"*.dkr.example.org":{"registrytoken":"t"}}}"#;
        assert_eq!(
            found(json, "eu.dkr.example.org/a"),
            [Credentials::Bearer("t".into())]
        );
        assert_eq!(found(json, "a.eu.dkr.example.org/a"), []);
    }

    #[test]
    fn errors_and_debug_forms_hold_no_secret() {
        let bad =
            Keyring::from_docker_config(br#"{"auths":{"r":{"auth":"sekrit!"}}}"#).unwrap_err();
        assert!(!format!("{bad:?} {bad}").contains("sekrit"));
        let broken = Keyring::from_docker_config(br#"{"auths": "sekrit"}"#).unwrap_err();
        assert!(!format!("{broken:?} {broken}").contains("sekrit"));
        assert!(!format!("{:?}", basic("u", "sekrit")).contains("sekrit"));
    }
}
