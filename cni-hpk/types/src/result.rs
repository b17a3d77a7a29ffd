//! What ADD returns (spec section 5, "Success"), in the shape each version wants.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::version::SpecVersion;

/// The result of ADD, and of a delegated plugin. Held in the newest shape;
/// [`AddResult::to_json`] writes an older one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    #[serde(
        rename = "cniVersion",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub cni_version: Option<SpecVersion>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An interface made, in the pod (`sandbox` set) or outside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Bytes. Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The netns path; empty for an interface outside the pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Since 1.1.0.
    #[serde(
        rename = "socketPath",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub socket_path: Option<String>,
    /// Since 1.1.0.
    #[serde(rename = "pciID", default, skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// An address given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Address with its prefix length; host bits kept.
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Bytes. These five since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

impl Route {
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

/// Resolver settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl AddResult {
    /// The result as `version` writes it: 0.3.1 and 0.4.0 mark each address
    /// with its IP version, and only 1.1.0 has the fields that came with it.
    pub fn to_json(&self, version: SpecVersion) -> Value {
        let mut shaped = self.clone();
        shaped.cni_version = Some(version);
        if version < SpecVersion::V1_1_0 {
            for interface in &mut shaped.interfaces {
                interface.mtu = None;
                interface.socket_path = None;
                interface.pci_id = None;
            }
            for route in &mut shaped.routes {
                *route = Route::new(route.dst, route.gw);
            }
        }
        // The types above have string keys only: this can't fail.
        let mut json = serde_json::to_value(&shaped).unwrap_or(Value::Null);
        if version < SpecVersion::V1_0_0
            && let Some(ips) = json.get_mut("ips").and_then(Value::as_array_mut)
        {
            for (entry, ip) in ips.iter_mut().zip(&self.ips) {
                entry["version"] = match ip.address {
                    IpNet::V4(_) => "4",
                    IpNet::V6(_) => "6",
                }
                .into();
            }
        }
        // 0.3.1's examples always carry it; its readers expect the key.
        if version < SpecVersion::V1_0_0 && json.get("dns").is_none() {
            json["dns"] = Value::Object(serde_json::Map::new());
        }
        json
    }

    /// The first address on an interface in the pod.
    pub fn pod_ip(&self) -> Option<IpAddr> {
        self.pod_ips().next()
    }

    /// All addresses on interfaces in the pod, in the order given. Addresses
    /// tied to no interface count too.
    pub fn pod_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ips
            .iter()
            .filter(|ip| match ip.interface {
                Some(index) => self
                    .interfaces
                    .get(index)
                    .is_some_and(|interface| !interface.sandbox.is_empty()),
                None => true,
            })
            .map(|ip| ip.address.addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> AddResult {
        AddResult {
            cni_version: Some(SpecVersion::V1_1_0),
            interfaces: vec![
                Interface {
                    name: "veth1".into(),
                    ..Interface::default()
                },
                Interface {
                    name: "eth0".into(),
                    mtu: Some(1450),
                    sandbox: "/run/netns/x".into(),
                    ..Interface::default()
                },
            ],
            ips: vec![IpConfig {
                address: "10.244.1.7/24".parse().unwrap(),
                gateway: Some("10.244.1.1".parse().unwrap()),
                interface: Some(1),
            }],
            routes: vec![Route {
                mtu: Some(1450),
                ..Route::new("0.0.0.0/0".parse().unwrap(), None)
            }],
            dns: Dns::default(),
        }
    }

    #[test]
    fn the_newest_shape_is_read_back_unchanged() {
        let json = sample().to_json(SpecVersion::V1_1_0);
        assert_eq!(serde_json::from_value::<AddResult>(json).unwrap(), sample());
    }

    #[test]
    fn older_shapes_lose_the_newer_fields() {
        let json = sample().to_json(SpecVersion::V1_0_0);
        assert_eq!(json["cniVersion"], "1.0.0");
        assert!(json["interfaces"][1].get("mtu").is_none());
        assert!(json["routes"][0].get("mtu").is_none());
        assert!(json["ips"][0].get("version").is_none());
    }

    #[test]
    fn versions_before_1_0_0_mark_the_ip_version() {
        let json = sample().to_json(SpecVersion::V0_3_1);
        assert_eq!(json["ips"][0]["version"], "4");
        assert_eq!(json["ips"][0]["address"], "10.244.1.7/24");
        serde_json::from_value::<AddResult>(json).unwrap();
    }

    #[test]
    fn the_pod_ip_is_one_inside_the_sandbox() {
        let mut result = sample();
        assert_eq!(result.pod_ip(), Some("10.244.1.7".parse().unwrap()));
        result.ips[0].interface = Some(0);
        assert_eq!(result.pod_ip(), None);
    }
}
