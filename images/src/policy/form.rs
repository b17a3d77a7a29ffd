//! The file's form, read and checked: an unknown word is refused, since it may be a misspelt restriction.

use std::collections::HashMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::signature::{Key, KeyError};
use super::{Identity, Policy, Requirement};

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// No JSON of the form.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// No requirement at all: neither accept nor reject.
    #[error("scope {0:?} has an empty list: say insecureAcceptAnything or reject")]
    Empty(String),
    /// sigstoreSigned names its keys by none or several of the ways.
    #[error("scope {0:?}: sigstoreSigned needs one of keyPath, keyPaths, keyData, keyDatas")]
    Keys(String),
    /// A key file can't be read.
    #[error("reading the key {path}: {source}")]
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
    #[error("the key {name}: {source}")]
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
    transports: HashMap<String, HashMap<String, Vec<Item>>>,
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
    let transports = file.transports.into_iter().map(|(transport, scopes)| {
        let scopes = scopes.into_iter().map(|(scope, items)| {
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
        let wrong = |json: &str| parse(json.as_bytes()).unwrap_err().to_string();
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
}
