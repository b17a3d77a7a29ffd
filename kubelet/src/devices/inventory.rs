//! Which devices the node offers: `--device=RESOURCE=NODE[,NODE…]`, once for each. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use thiserror::Error;

use crate::quantity::Quantity;

/// An option that can't be honoured.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    #[error("--device wants RESOURCE=NODE[,NODE…], got {0:?}")]
    NotAPair(String),
    #[error(
        "--device={value}: {resource:?} is no extended resource's name, such as vendor.example/thing"
    )]
    Resource { value: String, resource: String },
    #[error("--device={value}: {node:?} is no absolute path")]
    Node { value: String, node: String },
    #[error("--device={0} names a device for the second time")]
    Twice(String),
}

/// By resource, in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    devices: BTreeMap<String, Vec<Device>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    /// The first of its nodes, which is its alone.
    id: PathBuf,
    /// All of them; what comes after the first may be others' too.
    nodes: Vec<PathBuf>,
}

impl Inventory {
    pub fn parse(options: &[String]) -> Result<Self, Error> {
        let mut inventory = Self::default();
        for value in options {
            let Some((resource, list)) = value.split_once('=') else {
                return Err(Error::NotAPair(value.clone()));
            };
            if !is_extended(resource) {
                return Err(Error::Resource {
                    value: value.clone(),
                    resource: resource.to_owned(),
                });
            }
            let nodes: Vec<PathBuf> = list.split(',').map(PathBuf::from).collect();
            if let Some(node) = nodes.iter().find(|node| !node.is_absolute()) {
                return Err(Error::Node {
                    value: value.clone(),
                    node: node.display().to_string(),
                });
            }
            let Some(id) = nodes.first().cloned() else {
                return Err(Error::NotAPair(value.clone()));
            };
            let mut known = inventory.devices.values().flatten();
            if known.any(|device| device.id == id) {
                return Err(Error::Twice(value.clone()));
            }
            let of_resource = inventory.devices.entry(resource.to_owned()).or_default();
            of_resource.push(Device { id, nodes });
        }
        Ok(inventory)
    }

    /// How many there are of each resource.
    pub fn counts(&self) -> BTreeMap<String, Quantity> {
        let pairs = self.devices.iter();
        let count = |all: &Vec<Device>| {
            Quantity::from_value(i128::try_from(all.len()).unwrap_or(i128::MAX))
        };
        pairs
            .map(|(resource, all)| (resource.clone(), count(all)))
            .collect()
    }

    /// What identifies the devices of a resource; none for a resource that isn't of devices.
    pub fn ids(&self, resource: &str) -> Option<impl Iterator<Item = &PathBuf>> {
        let all = self.devices.get(resource)?;
        Some(all.iter().map(|device| &device.id))
    }

    /// All nodes of one device.
    pub fn nodes(&self, resource: &str, id: &PathBuf) -> Option<&[PathBuf]> {
        let all = self.devices.get(resource)?;
        let device = all.iter().find(|device| device.id == *id)?;
        Some(&device.nodes)
    }
}

/// Whether a resource is none of Kubernetes' own. Source: pkg/apis/core/v1/helper, IsExtendedResourceName.
pub fn is_extended(resource: &str) -> bool {
    let Some((domain, name)) = resource.split_once('/') else {
        return false;
    };
    !domain.is_empty()
        && !name.is_empty()
        && !name.contains('/')
        && !domain.ends_with("kubernetes.io")
        && !domain.starts_with("requests.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<Inventory, Error> {
        let options: Vec<String> = options.iter().map(|text| (*text).to_owned()).collect();
        Inventory::parse(&options)
    }

    #[test]
    fn devices_are_counted_by_resource_and_may_share_what_is_not_their_first_node() {
        let inventory = parse(&[
            "amd.com/gpu=/dev/dri/renderD128,/dev/kfd",
            "nvidia.com/gpu=/dev/nvidia0",
            "amd.com/gpu=/dev/dri/renderD129,/dev/kfd",
        ])
        .expect("an inventory");
        let counts = inventory.counts();
        assert_eq!(counts["amd.com/gpu"].value(), 2);
        assert_eq!(counts["nvidia.com/gpu"].value(), 1);
        let second = PathBuf::from("/dev/dri/renderD129");
        let nodes = inventory.nodes("amd.com/gpu", &second).expect("known");
        assert_eq!(
            nodes,
            ["/dev/dri/renderD129", "/dev/kfd"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_wrong_option_is_named() {
        for (option, word) in [
            ("nvidia.com/gpu", "RESOURCE=NODE"),
            ("gpu=/dev/nvidia0", "\"gpu\" is no extended resource"),
            ("x.kubernetes.io/gpu=/dev/nvidia0", "no extended resource"),
            ("nvidia.com/gpu=nvidia0", "\"nvidia0\" is no absolute path"),
        ] {
            let error = parse(&[option]).expect_err(option).to_string();
            assert!(error.contains(word), "{error}");
        }
        let twice = ["a.test/x=/dev/x", "b.test/y=/dev/x"];
        assert_eq!(parse(&twice), Err(Error::Twice(twice[1].to_owned())));
    }
}
