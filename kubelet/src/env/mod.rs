//! A container's environment: what it refers to, and, once that is fetched, what it is. Pure.
//!
//! - `expand`: `$(VAR)` in command, args and env
//! - `services`: the variables each Service gives
//! - `fields`: fieldRef and resourceFieldRef
//! - here: env and envFrom put together, in the order Kubernetes defines

pub mod expand;
pub mod fields;
pub mod services;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret, Service};
use thiserror::Error;

pub use fields::{Facts, FieldError};

/// An object that a container's environment is made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    ConfigMap(String),
    Secret(String),
}

/// Objects that were fetched, by name; one that doesn't exist is absent.
#[derive(Debug, Default)]
pub struct Objects {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
}

/// Why an environment can't be made (reason CreateContainerConfigError).
#[derive(Debug, Error)]
pub enum Error {
    #[error("configmap {0:?} not found")]
    NoConfigMap(String),
    #[error("secret {0:?} not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        kind: &'static str,
        namespace: String,
        name: String,
        key: String,
    },
    #[error("variable {variable}: key {key} of secret {name} is not UTF-8 text")]
    NotText {
        variable: String,
        name: String,
        key: String,
    },
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// All ConfigMaps and Secrets that the container's env and envFrom name.
pub fn references(container: &Container) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    for source in container.env_from.iter().flatten() {
        if let Some(map) = &source.config_map_ref {
            found.insert(Reference::ConfigMap(map.name.clone()));
        }
        if let Some(secret) = &source.secret_ref {
            found.insert(Reference::Secret(secret.name.clone()));
        }
    }
    let sources = container.env.iter().flatten();
    for source in sources.filter_map(|variable| variable.value_from.as_ref()) {
        if let Some(key) = &source.config_map_key_ref {
            found.insert(Reference::ConfigMap(key.name.clone()));
        }
        if let Some(key) = &source.secret_key_ref {
            found.insert(Reference::Secret(key.name.clone()));
        }
    }
    found
}

/// The container's variables in order; a later one of the same name has replaced the earlier.
///
/// Services of the pod's namespace give variables unless enableServiceLinks is false; the API
/// server's own Service gives them always.
pub fn plan(
    pod: &Pod,
    container: &Container,
    services: &[Service],
    objects: &Objects,
    facts: &Facts,
) -> Result<Vec<(String, String)>, Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.enable_service_links)
        .unwrap_or(true);
    let service_variables = services::variables(services, namespace, links);
    let mut known: BTreeMap<String, String> = service_variables.iter().cloned().collect();
    let mut ordered: Vec<(String, String)> = Vec::new();
    let mut set = |known: &mut BTreeMap<String, String>, name: String, value: String| {
        known.insert(name.clone(), value.clone());
        match ordered.iter_mut().find(|(existing, _)| *existing == name) {
            Some(entry) => entry.1 = value,
            None => ordered.push((name, value)),
        }
    };
    for (name, value) in env_from(container, objects)? {
        set(&mut known, name, value);
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand::expand(value, &|name| known.get(name).cloned())),
            (None, Some(source)) => from_source(
                pod,
                container,
                namespace,
                &variable.name,
                source,
                objects,
                facts,
            )?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            set(&mut known, variable.name.clone(), value);
        }
    }
    let rest: Vec<_> = service_variables
        .into_iter()
        .filter(|(name, _)| !ordered.iter().any(|(existing, _)| existing == name))
        .collect();
    ordered.extend(rest);
    Ok(ordered)
}

fn env_from(container: &Container, objects: &Objects) -> Result<Vec<(String, String)>, Error> {
    let mut variables = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match objects.config_maps.get(&reference.name) {
                Some(map) => variables.extend(
                    map.data
                        .iter()
                        .flatten()
                        .map(|(key, value)| (format!("{prefix}{key}"), value.clone())),
                ),
                None if reference.optional == Some(true) => {}
                None => return Err(Error::NoConfigMap(reference.name.clone())),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match objects.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        let name = format!("{prefix}{key}");
                        let text = utf8(&name, &reference.name, key, &value.0)?;
                        variables.push((name, text));
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(Error::NoSecret(reference.name.clone())),
            }
        }
    }
    Ok(variables)
}

/// The value a `valueFrom` stands for; none if it is optional and absent.
fn from_source(
    pod: &Pod,
    container: &Container,
    namespace: &str,
    variable: &str,
    source: &EnvVarSource,
    objects: &Objects,
    facts: &Facts,
) -> Result<Option<String>, Error> {
    if let Some(field) = &source.field_ref {
        return Ok(Some(fields::field(pod, &field.field_path, facts)?));
    }
    if let Some(resource) = &source.resource_field_ref {
        return Ok(Some(fields::resource(pod, container, resource, facts)?));
    }
    if let Some(wanted) = &source.config_map_key_ref {
        let optional = wanted.optional == Some(true);
        let Some(map) = objects.config_maps.get(&wanted.name) else {
            return absent(optional, Error::NoConfigMap(wanted.name.clone()));
        };
        let value = map.data.as_ref().and_then(|data| data.get(&wanted.key));
        return match value {
            Some(value) => Ok(Some(value.clone())),
            None => absent(
                optional,
                no_key("ConfigMap", namespace, &wanted.name, &wanted.key),
            ),
        };
    }
    if let Some(wanted) = &source.secret_key_ref {
        let optional = wanted.optional == Some(true);
        let Some(secret) = objects.secrets.get(&wanted.name) else {
            return absent(optional, Error::NoSecret(wanted.name.clone()));
        };
        let value = secret.data.as_ref().and_then(|data| data.get(&wanted.key));
        return match value {
            Some(value) => utf8(variable, &wanted.name, &wanted.key, &value.0).map(Some),
            None => absent(
                optional,
                no_key("Secret", namespace, &wanted.name, &wanted.key),
            ),
        };
    }
    Ok(Some(String::new()))
}

fn absent(optional: bool, error: Error) -> Result<Option<String>, Error> {
    if optional { Ok(None) } else { Err(error) }
}

fn no_key(kind: &'static str, namespace: &str, name: &str, key: &str) -> Error {
    Error::NoKey {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        key: key.to_owned(),
    }
}

fn utf8(variable: &str, name: &str, key: &str, bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::NotText {
        variable: variable.to_owned(),
        name: name.to_owned(),
        key: key.to_owned(),
    })
}

#[cfg(test)]
mod tests;
