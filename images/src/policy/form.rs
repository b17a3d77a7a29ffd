//! The file's form, read and checked: an unknown word is refused, since it may be a misspelt restriction.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::signature::{Key, KeyError};
use super::{Identity, Policy, Requirement, name_scopes};
use crate::reference::Reference;

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// No JSON of the form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// No requirement at all: neither accept nor reject.
    #[error("scope {0:?} has an empty list: say insecureAcceptAnything or reject")]
    Empty(String),
    /// A misspelt restriction, perhaps.
    #[error("no image can have the scope {0:?}: {1}")]
    Scope(String, &'static str),
    /// sigstoreSigned names its keys by none or several of the ways.
    #[error("scope {0:?}: sigstoreSigned needs one of keyPath, keyPaths, keyData, keyDatas")]
    Keys(String),
    /// A key file can't be read.
    #[error("reading the key {path}")]
    ReadKey {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// keyData is no base64.
    #[error("scope {0:?}: keyData is not base64")]
    KeyData(String),
    /// A key can't be used.
    #[error("the key {name}")]
    Key {
        /// Its file, or the scope.
        name: String,
        /// Why.
        source: KeyError,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<Item>,
    #[serde(default)]
    transports: Unique<Unique<Vec<Item>>>,
}

/// A JSON object that has no key twice: of two restrictions one would be lost.
struct Unique<V>(HashMap<String, V>);

impl<V> Default for Unique<V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
    type Value = Unique<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = HashMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if entries.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
            }
            entries.insert(key, map.next_value()?);
        }
        Ok(Unique(entries))
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum Item {
    InsecureAcceptAnything {},
    Reject {},
    SignedBy {},
    SigstoreSigned(Box<Sigstore>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sigstore {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    signed_identity: Option<SignedIdentity>,
    // What needs services of sigstore's own.
    fulcio: Option<serde_json::Value>,
    pki: Option<serde_json::Value>,
    rekor_public_key_path: Option<serde_json::Value>,
    rekor_public_key_paths: Option<serde_json::Value>,
    rekor_public_key_data: Option<serde_json::Value>,
    rekor_public_key_datas: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum SignedIdentity {
    MatchRepoDigestOrExact {},
    MatchExact {},
    MatchRepository {},
    ExactReference {},
    ExactRepository {},
    RemapIdentity {},
}

pub(super) fn parse(json: &[u8]) -> Result<Policy, FormError> {
    let file: File = serde_json::from_slice(json)?;
    let transports = file.transports.0.into_iter().map(|(transport, scopes)| {
        let scopes = scopes.0.into_iter().map(|(scope, items)| {
            check_scope(&transport, &scope)?;
            let requirements = requirements(&format!("{transport}:{scope}"), items)?;
            Ok((scope, requirements))
        });
        let scopes: Result<_, FormError> = scopes.collect();
        Ok((transport.clone(), scopes?))
    });
    Ok(Policy {
        transports: transports.collect::<Result<_, FormError>>()?,
        default: requirements("default", file.default)?,
    })
}

/// Refuses a scope that would never decide. Other tools' transports are theirs to check.
fn check_scope(transport: &str, scope: &str) -> Result<(), FormError> {
    let fault = match transport {
        _ if scope.is_empty() => None,
        "docker" if !is_of_a_name(scope) => {
            Some("say HOST[:PORT][/PATH[:TAG]] in lower case, docker.io/library/NAME, or *.DOMAIN")
        }
        "docker-archive" | "oci-archive" | "oci" | "sif" | "dir" if !is_of_a_path(scope) => {
            Some("say an absolute path without . or .. and no / at its end")
        }
        _ => None,
    };
    match fault {
        Some(fault) => Err(FormError::Scope(format!("{transport}:{scope}"), fault)),
        None => Ok(()),
    }
}

/// Whether one of the names that the scope would stand for leads to it.
fn is_of_a_name(scope: &str) -> bool {
    let below = match scope.strip_prefix('*') {
        Some(domain) => format!("x{domain}/x"),
        None => format!("{scope}/x"),
    };
    [scope, &below].into_iter().any(|name| {
        let parsed = name.parse::<Reference>();
        parsed.is_ok_and(|name| name_scopes(&name).iter().any(|known| known == scope))
    })
}

fn is_of_a_path(scope: &str) -> bool {
    let path = Path::new(scope);
    let is_plain = path.components().all(|part| part != Component::ParentDir);
    let plain: PathBuf = path.components().collect();
    path.is_absolute() && is_plain && plain.as_os_str() == scope
}

fn requirements(scope: &str, items: Vec<Item>) -> Result<Vec<Requirement>, FormError> {
    if items.is_empty() {
        return Err(FormError::Empty(scope.to_owned()));
    }
    let one = |item| match item {
        Item::InsecureAcceptAnything {} => Ok(Requirement::Accept),
        Item::Reject {} => Ok(Requirement::Reject),
        Item::SignedBy {} => Ok(Requirement::Uncheckable("signedBy, a GPG signature".into())),
        Item::SigstoreSigned(sigstore) => sigstore.requirement(scope),
    };
    items.into_iter().map(one).collect()
}

impl Sigstore {
    fn requirement(self, scope: &str) -> Result<Requirement, FormError> {
        let uncheckable = |what: &str| Ok(Requirement::Uncheckable(what.to_owned()));
        if self.fulcio.is_some() || self.pki.is_some() {
            return uncheckable("sigstoreSigned by certificates (fulcio, pki)");
        }
        let rekor = [
            &self.rekor_public_key_path,
            &self.rekor_public_key_paths,
            &self.rekor_public_key_data,
            &self.rekor_public_key_datas,
        ];
        if rekor.into_iter().any(Option::is_some) {
            return uncheckable("sigstoreSigned with an entry in Rekor's log");
        }
        let identity = match self.signed_identity {
            None | Some(SignedIdentity::MatchRepoDigestOrExact {}) => Identity::RepoDigestOrExact,
            Some(SignedIdentity::MatchExact {}) => Identity::Exact,
            Some(SignedIdentity::MatchRepository {}) => Identity::Repository,
            Some(SignedIdentity::ExactReference {}) => {
                return uncheckable("signedIdentity exactReference");
            }
            Some(SignedIdentity::ExactRepository {}) => {
                return uncheckable("signedIdentity exactRepository");
            }
            Some(SignedIdentity::RemapIdentity {}) => {
                return uncheckable("signedIdentity remapIdentity");
            }
        };
        let keys = self.keys(scope)?;
        Ok(Requirement::Sigstore { keys, identity })
    }

    fn keys(self, scope: &str) -> Result<Vec<Key>, FormError> {
        let from_file = |path: PathBuf| {
            let pem = std::fs::read(&path).map_err(|source| FormError::ReadKey {
                path: path.clone(),
                source,
            })?;
            named(path.display().to_string(), &pem)
        };
        let from_data = |data: String| {
            let pem = STANDARD.decode(data.trim());
            let pem = pem.map_err(|_| FormError::KeyData(scope.to_owned()))?;
            named(scope.to_owned(), &pem)
        };
        match (self.key_path, self.key_paths, self.key_data, self.key_datas) {
            (Some(path), None, None, None) => Ok(vec![from_file(path)?]),
            (None, Some(paths), None, None) if !paths.is_empty() => {
                paths.into_iter().map(from_file).collect()
            }
            (None, None, Some(data), None) => Ok(vec![from_data(data)?]),
            (None, None, None, Some(datas)) if !datas.is_empty() => {
                datas.into_iter().map(from_data).collect()
            }
            _ => Err(FormError::Keys(scope.to_owned())),
        }
    }
}

fn named(name: String, pem: &[u8]) -> Result<Key, FormError> {
    Key::from_pem(pem).map_err(|source| FormError::Key { name, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |json: &str| {
            let error = parse(json.as_bytes()).unwrap_err();
            let why = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", why.unwrap_or_default())
        };
        let of = |item: &str| format!(r#"{{"default":[{item}]}}"#);
        for (json, word) in [
            ("{}".to_owned(), "default"),
            (r#"{"default":[]}"#.to_owned(), "\"default\""),
            (of(r#"{"type":"rejekt"}"#), "rejekt"),
            (
                r#"{"default":[{"type":"reject"}],"transport":{}}"#.to_owned(),
                "transport",
            ),
            (of(r#"{"type":"sigstoreSigned"}"#), "keyPath"),
            (
                of(r#"{"type":"sigstoreSigned","keyPath":"/no/such"}"#),
                "/no/such",
            ),
            (of(r#"{"type":"sigstoreSigned","keyData":"!"}"#), "base64"),
            (of(r#"{"type":"sigstoreSigned","keyData":"eA=="}"#), "PEM"),
            (of(r#"{"type":"sigstoreSigned","keypath":"/k"}"#), "keypath"),
        ] {
            let said = wrong(&json);
            assert!(said.contains(word), "{json}: {said}");
        }
    }

    #[test]
    fn a_key_that_comes_twice_is_refused() {
        let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
        for transports in [
            format!(r#"{{"docker":{{"":{accept}}},"docker":{{}}}}"#),
            format!(r#"{{"oci":{{"docker":{accept},"docker":{accept}}}}}"#),
        ] {
            let json = format!(r#"{{"default":{accept},"transports":{transports}}}"#);
            let said = parse(json.as_bytes()).unwrap_err().to_string();
            assert!(said.contains("duplicate key \"docker\""), "{json}: {said}");
        }
    }

    #[test]
    fn a_scope_that_no_image_can_have_is_refused_and_named() {
        let digest = format!("quay.io/a@sha256:{}", "1".repeat(64));
        for (transport, scope, good) in [
            ("docker", "", true),
            ("docker", "quay.io", true),
            ("docker", "r:5000", true),
            ("docker", "localhost", true),
            ("docker", "docker.io/library", true),
            ("docker", "docker.io/team", true),
            ("docker", "quay.io/a/b:V1", true),
            ("docker", &digest, true),
            ("docker", "*.example.org", true),
            ("docker", "quay.io/team/", false),
            ("docker", "quay.io//team", false),
            ("docker", "Quay.io/team", false),
            ("docker", "quay.io/Team", false),
            ("docker", "team/app", false),
            ("docker", "docker.io/busybox:1", false),
            ("docker", "registry-1.docker.io/library", false),
            ("docker", "*", false),
            ("docker", "*.example.org:5000", false),
            ("docker", "*.example.org/team", false),
            ("oci-archive", "/data/a", true),
            ("oci-archive", "/", true),
            ("docker-archive", "data", false),
            ("oci", "/data/../etc", false),
            ("sif", "/data/./x", false),
            ("dir", "/data/", false),
            ("atomic", "any/Thing/", true),
        ] {
            let json = format!(
                r#"{{"default":[{{"type":"reject"}}],
                    "transports":{{"{transport}":{{"{scope}":[{{"type":"reject"}}]}}}}}}"#
            );
            let parsed = parse(json.as_bytes());
            assert_eq!(parsed.is_ok(), good, "{transport}:{scope}");
            if let Err(error) = parsed {
                let named = format!("{transport}:{scope}");
                assert!(error.to_string().contains(&named), "{error}");
            }
        }
    }
}
