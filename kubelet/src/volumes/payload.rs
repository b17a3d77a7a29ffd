//! Files of volumes that come from the API, as values. Pure: what they need is fetched before.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, Secret,
    ServiceAccountTokenProjection,
};
use thiserror::Error;

use super::plan::Kind;
use crate::env::{Facts, FieldError, fields};

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
}

pub type Files = BTreeMap<String, File>;

/// What a volume's files are made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    ConfigMap(String),
    Secret(String),
    Token {
        audience: Option<String>,
        expiration_seconds: i64,
    },
}

/// What was fetched for the needs; an object that doesn't exist is absent.
#[derive(Debug, Default, Clone)]
pub struct Fetched {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
    pub tokens: BTreeMap<Need, String>,
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("configmap {0:?} not found")]
    NoConfigMap(String),
    #[error("secret {0:?} not found")]
    NoSecret(String),
    #[error("references non-existent config key: {0}")]
    NoConfigKey(String),
    #[error("references non-existent secret key: {0}")]
    NoSecretKey(String),
    #[error("no token for audience {0:?}")]
    NoToken(Option<String>),
    #[error("projected source {0} is not supported by hpk-kubelet")]
    Unsupported(&'static str),
    #[error(transparent)]
    Field(#[from] FieldError),
}

const DEFAULT_MODE: u32 = 0o644;

/// Everything the volume has to be given before its files can be made.
pub fn needs(kind: &Kind) -> BTreeSet<Need> {
    let mut needs = BTreeSet::new();
    match kind {
        Kind::ConfigMap(source) => {
            needs.insert(Need::ConfigMap(source.name.clone()));
        }
        Kind::Secret(source) => {
            needs.insert(Need::Secret(source.secret_name.clone().unwrap_or_default()));
        }
        Kind::Projected(projected) => {
            for source in projected.sources.iter().flatten() {
                if let Some(map) = &source.config_map {
                    needs.insert(Need::ConfigMap(map.name.clone()));
                }
                if let Some(secret) = &source.secret {
                    needs.insert(Need::Secret(secret.name.clone()));
                }
                if let Some(token) = &source.service_account_token {
                    needs.insert(token_need(token));
                }
            }
        }
        Kind::EmptyDir(_) | Kind::HostPath(_) | Kind::DownwardApi(_) | Kind::Unsupported(_) => {}
    }
    needs
}

/// The files the volume holds.
pub fn files(kind: &Kind, pod: &Pod, fetched: &Fetched, facts: &Facts) -> Result<Files, Error> {
    let mut files = Files::new();
    match kind {
        Kind::ConfigMap(source) => {
            let mode = mode(source.default_mode);
            let optional = source.optional == Some(true);
            config_map(
                &mut files,
                fetched,
                &source.name,
                source.items.as_deref(),
                mode,
                optional,
            )?;
        }
        Kind::Secret(source) => {
            let mode = mode(source.default_mode);
            let optional = source.optional == Some(true);
            let name = source.secret_name.as_deref().unwrap_or_default();
            secret(
                &mut files,
                fetched,
                name,
                source.items.as_deref(),
                mode,
                optional,
            )?;
        }
        Kind::DownwardApi(source) => {
            downward(
                &mut files,
                pod,
                source.items.as_deref(),
                mode(source.default_mode),
                facts,
            )?;
        }
        Kind::Projected(projected) => {
            let mode = mode(projected.default_mode);
            for source in projected.sources.iter().flatten() {
                if let Some(map) = &source.config_map {
                    let optional = map.optional == Some(true);
                    config_map(
                        &mut files,
                        fetched,
                        &map.name,
                        map.items.as_deref(),
                        mode,
                        optional,
                    )?;
                } else if let Some(s) = &source.secret {
                    let optional = s.optional == Some(true);
                    secret(
                        &mut files,
                        fetched,
                        &s.name,
                        s.items.as_deref(),
                        mode,
                        optional,
                    )?;
                } else if let Some(api) = &source.downward_api {
                    downward(&mut files, pod, api.items.as_deref(), mode, facts)?;
                } else if let Some(token) = &source.service_account_token {
                    let value = fetched
                        .tokens
                        .get(&token_need(token))
                        .ok_or_else(|| Error::NoToken(token.audience.clone()))?;
                    let data = value.clone().into_bytes();
                    files.insert(token.path.clone(), File { data, mode });
                } else if source.cluster_trust_bundle.is_some() {
                    return Err(Error::Unsupported("clusterTrustBundle"));
                } else if source.pod_certificate.is_some() {
                    return Err(Error::Unsupported("podCertificate"));
                }
            }
        }
        Kind::EmptyDir(_) | Kind::HostPath(_) | Kind::Unsupported(_) => {}
    }
    Ok(files)
}

fn token_need(token: &ServiceAccountTokenProjection) -> Need {
    Need::Token {
        audience: token.audience.clone().filter(|a| !a.is_empty()),
        expiration_seconds: token.expiration_seconds.unwrap_or(3600),
    }
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok())
        .unwrap_or(DEFAULT_MODE)
}

fn config_map(
    files: &mut Files,
    fetched: &Fetched,
    name: &str,
    items: Option<&[KeyToPath]>,
    default_mode: u32,
    optional: bool,
) -> Result<(), Error> {
    let Some(map) = fetched.config_maps.get(name) else {
        return absent(optional, Error::NoConfigMap(name.to_owned()));
    };
    let mut content: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for (key, value) in map.data.iter().flatten() {
        content.insert(key, value.as_bytes());
    }
    for (key, value) in map.binary_data.iter().flatten() {
        content.insert(key, &value.0);
    }
    select(files, &content, items, default_mode, optional).map_err(Error::NoConfigKey)
}

fn secret(
    files: &mut Files,
    fetched: &Fetched,
    name: &str,
    items: Option<&[KeyToPath]>,
    default_mode: u32,
    optional: bool,
) -> Result<(), Error> {
    let Some(secret) = fetched.secrets.get(name) else {
        return absent(optional, Error::NoSecret(name.to_owned()));
    };
    let content: BTreeMap<&str, &[u8]> = secret
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.0.as_slice()))
        .collect();
    select(files, &content, items, default_mode, optional).map_err(Error::NoSecretKey)
}

/// Adds all keys, or the listed ones under their paths; the error is the missing key.
fn select(
    files: &mut Files,
    content: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    default_mode: u32,
    optional: bool,
) -> Result<(), String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, data) in content {
            let file = File {
                data: data.to_vec(),
                mode: default_mode,
            };
            files.insert((*key).to_owned(), file);
        }
        return Ok(());
    };
    for item in items {
        match content.get(item.key.as_str()) {
            Some(data) => {
                let file = File {
                    data: data.to_vec(),
                    mode: item.mode.map_or(default_mode, |m| mode(Some(m))),
                };
                files.insert(item.path.clone(), file);
            }
            None if optional => {}
            None => return Err(item.key.clone()),
        }
    }
    Ok(())
}

fn downward(
    files: &mut Files,
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    default_mode: u32,
    facts: &Facts,
) -> Result<(), Error> {
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => fields::field(pod, &field.field_path, facts)?,
            (None, Some(resource)) => {
                fields::resource(pod, &Container::default(), resource, facts)?
            }
            (None, None) => String::new(),
        };
        let file = File {
            data: text.into_bytes(),
            mode: item.mode.map_or(default_mode, |m| mode(Some(m))),
        };
        files.insert(item.path.clone(), file);
    }
    Ok(())
}

fn absent(optional: bool, error: Error) -> Result<(), Error> {
    if optional { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kind(volume: serde_json::Value) -> Kind {
        let spec = serde_json::from_value(json!({"containers": [], "volumes": [volume]}));
        super::super::plan::plan(&spec.expect("spec"))
            .remove(0)
            .kind
    }

    fn with_map(data: serde_json::Value) -> Fetched {
        let map = serde_json::from_value(json!({"data": data})).expect("map");
        Fetched {
            config_maps: BTreeMap::from([("m".to_owned(), map)]),
            ..Fetched::default()
        }
    }

    #[test]
    fn items_select_keys_paths_and_modes() {
        let kind = kind(
            json!({"name": "v", "configMap": {"name": "m", "defaultMode": 256,
            "items": [{"key": "a", "path": "x/y", "mode": 384}]}}),
        );
        let fetched = with_map(json!({"a": "1", "b": "2"}));
        let files = files(&kind, &Pod::default(), &fetched, &Facts::default()).expect("files");
        assert_eq!(files.len(), 1);
        assert_eq!(files["x/y"].mode, 0o600);
    }

    #[test]
    fn a_missing_map_is_an_error_unless_optional() {
        let wanted = |optional: bool| {
            kind(json!({"name": "v", "configMap": {"name": "no", "optional": optional}}))
        };
        let fetched = Fetched::default();
        let missing = files(&wanted(false), &Pod::default(), &fetched, &Facts::default());
        assert_eq!(
            missing.expect_err("missing").to_string(),
            "configmap \"no\" not found"
        );
        assert!(files(&wanted(true), &Pod::default(), &fetched, &Facts::default()).is_ok());
    }

    #[test]
    fn the_api_access_volume_needs_a_token_a_map_and_the_namespace() {
        let kind = kind(json!({"name": "kube-api-access", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "m", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}));
        let token = Need::Token {
            audience: None,
            expiration_seconds: 3607,
        };
        assert!(needs(&kind).contains(&token));
        let mut fetched = with_map(json!({"ca.crt": "pem"}));
        fetched.tokens.insert(token, "jwt".to_owned());
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"namespace": "ns1"}})).expect("pod");
        let files = files(&kind, &pod, &fetched, &Facts::default()).expect("files");
        assert_eq!(files["namespace"].data, b"ns1");
        assert_eq!(files["token"].data, b"jwt");
    }
}
