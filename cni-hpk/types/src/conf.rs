//! Network configuration: what one plugin reads on stdin, and the conflists
//! an administrator writes (spec section 1).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::env::is_valid_id;
use crate::result::{AddResult, Dns};
use crate::version::{SpecVersion, UnsupportedVersion};

/// Why a configuration isn't one.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    #[error("network configuration is not valid JSON")]
    Json(#[source] serde_json::Error),
    #[error("network configuration: {0}")]
    Invalid(String),
    #[error("network configuration")]
    Version(#[source] UnsupportedVersion),
}

/// Execution configuration of one plugin. `T` holds the plugin's own keys.
#[derive(Clone, Debug, Deserialize)]
pub struct NetConf<T> {
    #[serde(rename = "cniVersion")]
    pub cni_version: SpecVersion,
    pub name: String,
    #[serde(rename = "type")]
    pub plugin_type: String,
    #[serde(default)]
    pub dns: Dns,
    /// Kept as text it came in: it is passed on as it is.
    #[serde(rename = "prevResult", default)]
    pub prev_result: Option<Value>,
    /// Capability arguments, by capability.
    #[serde(rename = "runtimeConfig", default)]
    pub runtime_config: Map<String, Value>,
    #[serde(default)]
    pub capabilities: Map<String, Value>,
    /// Only in GC.
    #[serde(rename = "cni.dev/valid-attachments", default)]
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// The whole, as it came.
    #[serde(skip)]
    pub source: Map<String, Value>,
    #[serde(flatten)]
    pub plugin: T,
}

/// One entry of GC's `cni.dev/valid-attachments`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

impl<T: serde::de::DeserializeOwned> NetConf<T> {
    /// Parses stdin. The version is looked at first, so that a configuration
    /// of an unknown version is refused as that and not for an odd field.
    pub fn parse(json: &[u8]) -> Result<Self, ConfError> {
        let value: Value = serde_json::from_slice(json).map_err(ConfError::Json)?;
        parse_version(&value)?;
        let mut conf: Self = serde_json::from_value(value.clone())
            .map_err(|error| ConfError::Invalid(error.to_string()))?;
        check_name(&conf.name)?;
        if let Value::Object(source) = value {
            conf.source = source;
        }
        Ok(conf)
    }

    /// `prevResult` as a result, if there is one.
    pub fn prev_result(&self) -> Result<Option<AddResult>, ConfError> {
        self.prev_result
            .clone()
            .map(serde_json::from_value)
            .transpose()
            .map_err(|error| ConfError::Invalid(format!("prevResult: {error}")))
    }
}

fn parse_version(value: &Value) -> Result<SpecVersion, ConfError> {
    let object = value
        .as_object()
        .ok_or_else(|| ConfError::Invalid("not an object".to_owned()))?;
    match object.get("cniVersion") {
        Some(Value::String(text)) => text.parse().map_err(ConfError::Version),
        Some(_) => Err(ConfError::Invalid("cniVersion is not a string".to_owned())),
        // The specification's default, which nobody here speaks.
        None => Err(ConfError::Version(UnsupportedVersion("0.1.0".to_owned()))),
    }
}

fn check_name(name: &str) -> Result<(), ConfError> {
    if is_valid_id(name) {
        return Ok(());
    }
    Err(ConfError::Invalid(format!(
        "name {name:?} is not a valid network name"
    )))
}

/// A network as an administrator writes it: a conflist, or a single plugin's
/// conf (wrapped into a list of one).
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    pub cni_version: SpecVersion,
    pub name: String,
    pub disable_check: bool,
    pub disable_gc: bool,
    /// Each plugin's conf as written; never empty, each with a `type`.
    pub plugins: Vec<Map<String, Value>>,
    /// The list as written, for the result cache.
    pub source: Value,
}

impl NetworkList {
    /// Parses a conflist, or a single conf.
    pub fn parse(json: &[u8]) -> Result<Self, ConfError> {
        let source: Value = serde_json::from_slice(json).map_err(ConfError::Json)?;
        let cni_version = list_version(&source)?;
        let name = source
            .get("name")
            .and_then(Value::as_str)
            .ok_or_else(|| ConfError::Invalid("no name".to_owned()))?
            .to_owned();
        check_name(&name)?;
        let plugins = match source.get("plugins") {
            Some(Value::Array(plugins)) => plugins
                .iter()
                .map(|plugin| plugin.as_object().cloned())
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| ConfError::Invalid("a plugin is not an object".to_owned()))?,
            Some(_) => return Err(ConfError::Invalid("plugins is not a list".to_owned())),
            None => source.as_object().cloned().into_iter().collect(),
        };
        if plugins.is_empty() {
            return Err(ConfError::Invalid("plugins is empty".to_owned()));
        }
        for plugin in &plugins {
            match plugin.get("type").and_then(Value::as_str) {
                Some(name) if !name.is_empty() && !name.contains('/') => {}
                Some(name) => {
                    return Err(ConfError::Invalid(format!(
                        "type {name:?} is not a plugin's name"
                    )));
                }
                None => return Err(ConfError::Invalid("a plugin has no type".to_owned())),
            }
        }
        Ok(Self {
            cni_version,
            name,
            disable_check: flag(&source, "disableCheck")?,
            disable_gc: flag(&source, "disableGC")?,
            plugins,
            source,
        })
    }
}

/// The newest version spoken of `cniVersions` (since 1.1.0) and `cniVersion`.
fn list_version(source: &Value) -> Result<SpecVersion, ConfError> {
    let more = source.get("cniVersions").and_then(Value::as_array);
    let newest = more
        .into_iter()
        .flatten()
        .chain(source.get("cniVersion"))
        .filter_map(|version| version.as_str()?.parse::<SpecVersion>().ok())
        .max();
    match newest {
        Some(version) => Ok(version),
        None => parse_version(source),
    }
}

/// A boolean that old lists write as a string too.
fn flag(source: &Value, key: &str) -> Result<bool, ConfError> {
    match source.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text == "true" => Ok(true),
        Some(Value::String(text)) if text == "false" => Ok(false),
        Some(_) => Err(ConfError::Invalid(format!(
            "{key} is neither true nor false"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_conf_becomes_a_list_of_one() {
        let list =
            NetworkList::parse(br#"{"cniVersion":"1.0.0","name":"n","type":"ptp"}"#).unwrap();
        assert_eq!(list.plugins.len(), 1);
        assert_eq!(list.plugins[0]["type"], "ptp");
    }

    #[test]
    fn the_newest_version_offered_that_is_spoken_is_taken() {
        let list = NetworkList::parse(
            br#"{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.0.0","9.0.0"],"name":"n","plugins":[{"type":"a"}]}"#,
        )
        .unwrap();
        assert_eq!(list.cni_version, SpecVersion::V1_0_0);
        let list = NetworkList::parse(
            br#"{"cniVersion":"1.1.0","cniVersions":["0.4.0"],"name":"n","plugins":[{"type":"a"}]}"#,
        )
        .unwrap();
        assert_eq!(list.cni_version, SpecVersion::V1_1_0);
    }

    #[test]
    fn malformed_lists_say_what_is_wrong() {
        for (json, word) in [
            ("{", "JSON"),
            (r#"{"cniVersion":"1.0.0","plugins":[]}"#, "name"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "empty"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#,
                "type",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../x"}]}"#,
                "../x",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"../n","plugins":[{"type":"a"}]}"#,
                "../n",
            ),
        ] {
            let error = NetworkList::parse(json.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(word), "{json}: {error}");
        }
    }

    #[test]
    fn an_unknown_version_is_told_apart_from_an_odd_field() {
        let error = NetConf::<Map<String, Value>>::parse(br#"{"cniVersion":"7.0.0","name":5}"#)
            .unwrap_err();
        assert!(matches!(error, ConfError::Version(_)));
    }
}
