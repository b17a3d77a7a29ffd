//! Files of volumes that come from the API, as values. Pure: what they need is fetched before.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, Secret,
    ServiceAccountTokenProjection, VolumeProjection,
};
use thiserror::Error;

use super::plan::Kind;
use crate::env::{Facts, FieldError, fields};
use crate::pod::phase::roles;

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Whom it is given to; else it is the kubelet's.
    pub owner: Option<u32>,
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
        Kind::EmptyDir(_)
        | Kind::HostPath(_)
        | Kind::DownwardApi(_)
        | Kind::Image(_)
        | Kind::Claim(_)
        | Kind::Ephemeral
        | Kind::Unsupported(_) => {}
    }
    needs
}

/// The files the volume holds.
pub fn files(kind: &Kind, pod: &Pod, fetched: &Fetched, facts: &Facts) -> Result<Files, Error> {
    let mut maker = Maker {
        pod,
        fetched,
        facts,
        mode: DEFAULT_MODE,
        files: Files::new(),
    };
    match kind {
        Kind::ConfigMap(source) => {
            maker.mode = mode(source.default_mode);
            maker.config_map(&source.name, &source.items, source.optional)?;
        }
        Kind::Secret(source) => {
            maker.mode = mode(source.default_mode);
            let name = source.secret_name.as_deref().unwrap_or_default();
            maker.secret(name, &source.items, source.optional)?;
        }
        Kind::DownwardApi(source) => {
            maker.mode = mode(source.default_mode);
            maker.downward(&source.items)?;
        }
        Kind::Projected(projected) => {
            maker.mode = mode(projected.default_mode);
            for source in projected.sources.iter().flatten() {
                maker.projection(source)?;
            }
        }
        Kind::EmptyDir(_)
        | Kind::HostPath(_)
        | Kind::Image(_)
        | Kind::Claim(_)
        | Kind::Ephemeral
        | Kind::Unsupported(_) => {}
    }
    Ok(maker.files)
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

/// Puts a volume's files together, source by source; a later one's file replaces an earlier one's of that path.
struct Maker<'a> {
    pod: &'a Pod,
    fetched: &'a Fetched,
    facts: &'a Facts,
    /// Of files that are given none.
    mode: u32,
    files: Files,
}

impl Maker<'_> {
    fn config_map(
        &mut self,
        name: &str,
        items: &Option<Vec<KeyToPath>>,
        optional: Option<bool>,
    ) -> Result<(), Error> {
        let optional = optional == Some(true);
        let Some(map) = self.fetched.config_maps.get(name) else {
            return absent(optional, Error::NoConfigMap(name.to_owned()));
        };
        let mut content: BTreeMap<&str, &[u8]> = BTreeMap::new();
        for (key, value) in map.data.iter().flatten() {
            content.insert(key, value.as_bytes());
        }
        for (key, value) in map.binary_data.iter().flatten() {
            content.insert(key, &value.0);
        }
        self.select(&content, items, optional)
            .map_err(Error::NoConfigKey)
    }

    fn secret(
        &mut self,
        name: &str,
        items: &Option<Vec<KeyToPath>>,
        optional: Option<bool>,
    ) -> Result<(), Error> {
        let optional = optional == Some(true);
        let Some(secret) = self.fetched.secrets.get(name) else {
            return absent(optional, Error::NoSecret(name.to_owned()));
        };
        let content: BTreeMap<&str, &[u8]> = secret
            .data
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.0.as_slice()))
            .collect();
        self.select(&content, items, optional)
            .map_err(Error::NoSecretKey)
    }

    fn projection(&mut self, source: &VolumeProjection) -> Result<(), Error> {
        if let Some(map) = &source.config_map {
            self.config_map(&map.name, &map.items, map.optional)
        } else if let Some(secret) = &source.secret {
            self.secret(&secret.name, &secret.items, secret.optional)
        } else if let Some(api) = &source.downward_api {
            self.downward(&api.items)
        } else if let Some(token) = &source.service_account_token {
            let value = self.fetched.tokens.get(&token_need(token));
            let value = value.ok_or_else(|| Error::NoToken(token.audience.clone()))?;
            self.token(&token.path, value);
            Ok(())
        } else if source.cluster_trust_bundle.is_some() {
            Err(Error::Unsupported("clusterTrustBundle"))
        } else if source.pod_certificate.is_some() {
            Err(Error::Unsupported("podCertificate"))
        } else {
            Ok(())
        }
    }

    /// Adds all keys, or the listed ones under their paths; the error is the missing key.
    fn select(
        &mut self,
        content: &BTreeMap<&str, &[u8]>,
        items: &Option<Vec<KeyToPath>>,
        optional: bool,
    ) -> Result<(), String> {
        let items = items.as_deref().unwrap_or_default();
        if items.is_empty() {
            for (key, data) in content {
                self.add(key, data, None);
            }
        }
        for item in items {
            match content.get(item.key.as_str()) {
                Some(data) => self.add(&item.path, data, item.mode),
                None if optional => {}
                None => return Err(item.key.clone()),
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &Option<Vec<DownwardAPIVolumeFile>>) -> Result<(), Error> {
        for item in items.iter().flatten() {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => fields::field(self.pod, &field.field_path, self.facts)?,
                (None, Some(resource)) => {
                    fields::resource(self.pod, &Container::default(), resource, self.facts)?
                }
                (None, None) => String::new(),
            };
            self.add(&item.path, text.as_bytes(), item.mode);
        }
        Ok(())
    }

    /// Where all run as one user, or the files have a group, nobody else may read the token.
    fn token(&mut self, path: &str, value: &str) {
        let context = self.pod.spec.as_ref();
        let context = context.and_then(|spec| spec.security_context.as_ref());
        let owner = only_user(self.pod);
        let is_private = owner.is_some() || context.is_some_and(|c| c.fs_group.is_some());
        let file = File {
            data: value.as_bytes().to_vec(),
            mode: if is_private { 0o600 } else { self.mode },
            owner,
        };
        self.files.insert(path.to_owned(), file);
    }

    fn add(&mut self, path: &str, data: &[u8], own: Option<i32>) {
        let file = File {
            data: data.to_vec(),
            mode: own.map_or(self.mode, |own| mode(Some(own))),
            owner: None,
        };
        self.files.insert(path.to_owned(), file);
    }
}

/// The user that every container of the pod says it runs as, if it is one. Source:
/// pkg/volume/util (FsUserFrom).
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = roles(spec).map(|(container, _)| {
        let own = container.security_context.as_ref();
        own.and_then(|c| c.run_as_user).or(of_pod)
    });
    let first = users.next()??;
    let is_one = users.all(|user| user == Some(first));
    u32::try_from(first).ok().filter(|_| is_one)
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
        assert_eq!((files["token"].mode, files["token"].owner), (0o644, None));
        let own = |pod: serde_json::Value| {
            let pod = serde_json::from_value(pod).expect("pod");
            let files = super::files(&kind, &pod, &fetched, &Facts::default()).expect("files");
            (files["token"].mode, files["token"].owner)
        };
        let runs_as = |user: i64| json!({"name": "c", "securityContext": {"runAsUser": user}});
        let one = json!({"spec": {"containers": [runs_as(7), runs_as(7)]}});
        assert_eq!(own(one), (0o600, Some(7)));
        let two = json!({"spec": {"containers": [runs_as(7), runs_as(8)]}});
        assert_eq!(own(two), (0o644, None));
        let grouped = json!({"spec": {"containers": [], "securityContext": {"fsGroup": 9}}});
        assert_eq!(own(grouped), (0o600, None));
    }
}
