//! fieldRef and resourceFieldRef, for variables and for downwardAPI files.
//! Source: Kubernetes, "Downward API, Available fields".

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use thiserror::Error;

use crate::quantity::{self, Quantity};

/// What only the node knows of a pod.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub node_name: String,
    pub host_ips: Vec<String>,
    pub pod_ips: Vec<String>,
    /// What the node may give to pods; a limit that isn't set reads as this.
    pub allocatable: BTreeMap<String, Quantity>,
}

#[derive(Debug, Error)]
pub enum FieldError {
    #[error("unsupported fieldPath: {0}")]
    Path(String),
    #[error("unsupported resource: {0}")]
    Resource(String),
    #[error("container {0} not found")]
    Container(String),
    #[error("resource {resource}")]
    Quantity {
        resource: String,
        #[source]
        source: quantity::Error,
    },
}

/// The text that `path` stands for in this pod.
pub fn field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, FieldError> {
    let meta = &pod.metadata;
    if let Some(key) = subscript(path, "metadata.labels") {
        let labels = meta.labels.as_ref();
        return Ok(labels.and_then(|l| l.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        let annotations = meta.annotations.as_ref();
        return Ok(annotations
            .and_then(|a| a.get(key))
            .cloned()
            .unwrap_or_default());
    }
    let spec = pod.spec.as_ref();
    let text = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(format_map(meta.labels.as_ref())),
        "metadata.annotations" => Some(format_map(meta.annotations.as_ref())),
        "spec.nodeName" => Some(facts.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()),
        "status.hostIP" => facts.host_ips.first().cloned(),
        "status.hostIPs" => Some(facts.host_ips.join(",")),
        "status.podIP" => facts.pod_ips.first().cloned(),
        "status.podIPs" => Some(facts.pod_ips.join(",")),
        _ => return Err(FieldError::Path(path.to_owned())),
    };
    Ok(text.unwrap_or_default())
}

/// A container's request or limit in units of the divisor, rounded up.
pub fn resource(
    pod: &Pod,
    container: &Container,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, FieldError> {
    let named = match selector.container_name.as_deref() {
        None | Some("") => container,
        Some(name) => {
            let spec = pod.spec.as_ref();
            let init = spec.and_then(|s| s.init_containers.as_deref());
            let all = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
            all.iter()
                .chain(init.unwrap_or_default())
                .find(|c| c.name == name)
                .ok_or_else(|| FieldError::Container(name.to_owned()))?
        }
    };
    let resources = named.resources.as_ref();
    let (map, resource, is_limit) = match selector.resource.split_once('.') {
        Some(("limits", name)) => (resources.and_then(|r| r.limits.as_ref()), name, true),
        Some(("requests", name)) => (resources.and_then(|r| r.requests.as_ref()), name, false),
        _ => return Err(FieldError::Resource(selector.resource.clone())),
    };
    let parse = |text: &str| {
        Quantity::parse(text).map_err(|source| FieldError::Quantity {
            resource: selector.resource.clone(),
            source,
        })
    };
    let amount = match map.and_then(|map| map.get(resource)) {
        Some(quantity) => parse(&quantity.0)?,
        None if is_limit => facts.allocatable.get(resource).copied().unwrap_or_default(),
        None => Quantity::default(),
    };
    let divisor = match &selector.divisor {
        Some(divisor) => parse(&divisor.0)?,
        None => Quantity::from_value(1),
    };
    Ok(amount.divide_up(divisor).to_string())
}

fn subscript<'a>(path: &'a str, of: &str) -> Option<&'a str> {
    path.strip_prefix(of)?
        .strip_prefix("['")?
        .strip_suffix("']")
}

/// `key="value"` lines, values quoted as Go's strconv.Quote does.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", quote(value)))
        .collect::<Vec<_>>()
        .join("\n")
}

fn quote(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_limit_that_is_not_set_reads_as_the_nodes() {
        let container: Container = serde_json::from_value(json!({"name": "c"})).expect("container");
        let selector = serde_json::from_value(json!({"resource": "limits.cpu"})).expect("selector");
        let facts = Facts {
            allocatable: BTreeMap::from([("cpu".to_owned(), Quantity::from_value(2))]),
            ..Facts::default()
        };
        let value = resource(&Pod::default(), &container, &selector, &facts).expect("known");
        assert_eq!(value, "2");
    }

    #[test]
    fn label_files_quote_values_as_go_does() {
        let map = BTreeMap::from([("a".to_owned(), "x\"y\n".to_owned())]);
        assert_eq!(format_map(Some(&map)), "a=\"x\\\"y\\n\"");
    }
}
