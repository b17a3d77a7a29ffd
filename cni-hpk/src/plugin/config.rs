//! The plugin's configuration: stdin, with what Flannel and the overlay say,
//! validated.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use hpk_cni_types::{ConfError, NetConf, env::check_ifname};
use ipnet::Ipv4Net;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::Error;
use crate::subnet::{self, OverlayState, SubnetEnv};

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Keys {
    /// Flannel's file; `/run/flannel/subnet.env` unless `subnet` is given.
    pub subnet_file: Option<PathBuf>,
    /// State of the overlay; its MTU goes before Flannel's.
    pub overlay_file: Option<PathBuf>,
    /// The pods of this bubble, without Flannel.
    pub subnet: Option<Ipv4Net>,
    /// All pods, without Flannel; `subnet` if left out.
    pub network: Option<Ipv4Net>,
    pub bridge: Option<String>,
    pub datapath: Datapath,
    /// Masquerade what leaves `network`. Left out: unless flanneld does.
    pub ip_masq: Option<bool>,
    /// Bytes; goes before the files'.
    pub mtu: Option<u32>,
    /// Attachments, the lock and host-local's leases.
    pub data_dir: Option<PathBuf>,
    /// Further keys for the IPAM plugin, `host-local` unless it has a `type`.
    pub ipam: Map<String, Value>,
    /// Another plugin's configuration: it makes the interface, not we.
    pub delegate: Option<Map<String, Value>>,
}

/// How the pod's interface is joined to the bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datapath {
    #[default]
    Auto,
    Veth,
    Tap,
}

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/hpk/cni";
const BRIDGE: &str = "hpk-bridge";
const MTU: u32 = 1500;
/// The least an IPv4 host must take (RFC 791).
const LEAST_MTU: u32 = 576;

/// What stdin says, looked at as far as DEL needs it.
#[derive(Debug)]
pub struct Parsed {
    pub conf: NetConf<Keys>,
    pub data_dir: PathBuf,
}

/// A configuration that can be acted upon.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub bridge: String,
    /// The pods of this bubble.
    pub subnet: Ipv4Net,
    /// All pods.
    pub network: Ipv4Net,
    /// First address of `subnet`, the bridge's.
    pub gateway: Ipv4Addr,
    pub mtu: u32,
    pub ip_masq: bool,
}

impl Parsed {
    pub fn parse(stdin: &[u8]) -> Result<Self, Error> {
        let conf: NetConf<Keys> = NetConf::parse(stdin)?;
        let bridge = conf.plugin.bridge.as_deref().unwrap_or(BRIDGE);
        check_ifname(bridge)
            .map_err(|_| Error::Invalid(format!("bridge {bridge:?} is not an interface name")))?;
        if conf.plugin.datapath == Datapath::Tap {
            return Err(Error::Invalid(
                "datapath \"tap\" is not there yet: use \"veth\" or \"auto\"".to_owned(),
            ));
        }
        let data_dir = conf
            .plugin
            .data_dir
            .clone()
            .unwrap_or_else(|| DATA_DIR.into());
        if !data_dir.is_absolute() {
            return Err(Error::Invalid(format!(
                "dataDir {data_dir:?} is not an absolute path"
            )));
        }
        Ok(Self { conf, data_dir })
    }

    /// Reads what Flannel and the overlay say, and checks the whole.
    pub fn resolve(&self) -> Result<Config, Error> {
        let keys = &self.conf.plugin;
        let overlay = match &keys.overlay_file {
            Some(path) => OverlayState::load(path).map_err(not_ready)?,
            None => None,
        };
        let flannel = match keys.subnet {
            Some(_) => None,
            None => {
                let path = keys
                    .subnet_file
                    .as_deref()
                    .unwrap_or(Path::new(SUBNET_FILE));
                Some(SubnetEnv::load(path).map_err(not_ready)?)
            }
        };
        decide(keys, flannel.as_ref(), overlay.as_ref())
    }

    /// What the IPAM plugin reads on stdin.
    pub fn ipam_conf(&self, config: &Config) -> Value {
        let mut ipam = self.conf.plugin.ipam.clone();
        let kind = ipam.entry("type").or_insert_with(|| "host-local".into());
        if kind == "host-local" {
            ipam.entry("dataDir")
                .or_insert_with(|| self.data_dir.join("networks").display().to_string().into());
            if !ipam.contains_key("ranges") && !ipam.contains_key("subnet") {
                let range = json!([[{
                    "subnet": config.subnet.to_string(),
                    "gateway": config.gateway.to_string(),
                }]]);
                ipam.insert("ranges".to_owned(), range);
            }
        }
        json!({
            "cniVersion": self.conf.cni_version,
            "name": self.conf.name,
            "type": self.conf.plugin_type,
            "ipam": ipam,
        })
    }

    /// What a delegated plugin reads on stdin: the `delegate` block, completed
    /// as Flannel's own plugin completes it.
    pub fn delegate_conf(&self, delegate: &Map<String, Value>, config: &Config) -> Value {
        let mut conf = delegate.clone();
        conf.insert("name".to_owned(), self.conf.name.clone().into());
        conf.insert(
            "cniVersion".to_owned(),
            self.conf.cni_version.as_str().into(),
        );
        conf.entry("type").or_insert_with(|| "bridge".into());
        conf.entry("mtu").or_insert_with(|| config.mtu.into());
        conf.entry("ipMasq")
            .or_insert_with(|| config.ip_masq.into());
        if conf["type"] == "bridge" {
            conf.entry("isGateway").or_insert(Value::Bool(true));
        }
        if !conf.contains_key("ipam") {
            let mut ipam = self.ipam_conf(config)["ipam"].clone();
            ipam["routes"] = json!([{"dst": config.network.to_string()}]);
            conf.insert("ipam".to_owned(), ipam);
        }
        if !self.conf.runtime_config.is_empty() {
            conf.insert(
                "runtimeConfig".to_owned(),
                self.conf.runtime_config.clone().into(),
            );
        }
        Value::Object(conf)
    }
}

fn not_ready(error: subnet::Error) -> Error {
    match error.is_not_yet() {
        true => Error::NotReady(error),
        false => Error::Subnet(error),
    }
}

/// Which of the sources goes before which.
fn decide(
    keys: &Keys,
    flannel: Option<&SubnetEnv>,
    overlay: Option<&OverlayState>,
) -> Result<Config, Error> {
    let lease = flannel.and_then(|env| env.ipv4.as_ref());
    let subnet = keys.subnet.or(lease.map(|lease| lease.subnet));
    let subnet = subnet
        .ok_or_else(|| Error::Conf(ConfError::Invalid("no subnet".to_owned())))?
        .trunc();
    let network = keys.network.or(lease.map(subnet::Lease::network));
    let network = network.unwrap_or(subnet).trunc();
    if !network.contains(&subnet) {
        return Err(Error::Invalid(format!(
            "subnet {subnet} is not within network {network}"
        )));
    }
    if subnet.prefix_len() > 29 {
        return Err(Error::Invalid(format!(
            "subnet {subnet} is too small for a gateway and pods"
        )));
    }
    let gateway = subnet
        .hosts()
        .next()
        .ok_or_else(|| Error::Invalid(format!("subnet {subnet} has no addresses")))?;
    let mtu = keys
        .mtu
        .or(overlay.map(|state| state.mtu))
        .or(flannel.map(|env| env.mtu))
        .unwrap_or(MTU);
    if !(LEAST_MTU..=65535).contains(&mtu) {
        return Err(Error::Invalid(format!(
            "MTU {mtu} is not between {LEAST_MTU} and 65535"
        )));
    }
    Ok(Config {
        bridge: keys.bridge.clone().unwrap_or_else(|| BRIDGE.to_owned()),
        subnet,
        network,
        gateway,
        mtu,
        ip_masq: keys
            .ip_masq
            .unwrap_or(!flannel.is_some_and(|env| env.ip_masq)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flannel() -> SubnetEnv {
        SubnetEnv {
            ipv4: Some(subnet::Lease {
                networks: vec!["10.244.0.0/16".parse().unwrap()],
                subnet: "10.244.3.0/24".parse().unwrap(),
            }),
            ipv6: None,
            mtu: 1400,
            ip_masq: true,
        }
    }

    fn overlay() -> OverlayState {
        OverlayState {
            mode: "kernel".to_owned(),
            mtu: 1450,
            node_ip: "10.244.3.0".parse().unwrap(),
            device: "hpk-vxlan".to_owned(),
        }
    }

    #[test]
    fn the_overlays_mtu_goes_before_flannels() {
        let config = decide(&Keys::default(), Some(&flannel()), Some(&overlay())).unwrap();
        assert_eq!(config.mtu, 1450);
        let config = decide(&Keys::default(), Some(&flannel()), None).unwrap();
        assert_eq!(config.mtu, 1400);
        assert_eq!(config.gateway.to_string(), "10.244.3.1");
    }

    #[test]
    fn masquerading_is_left_to_flannel_unless_asked_for() {
        let config = decide(&Keys::default(), Some(&flannel()), None).unwrap();
        assert!(!config.ip_masq);
        let keys = Keys {
            ip_masq: Some(true),
            ..Keys::default()
        };
        assert!(decide(&keys, Some(&flannel()), None).unwrap().ip_masq);
    }

    #[test]
    fn a_subnet_outside_its_network_is_refused() {
        let keys = Keys {
            subnet: Some("10.1.0.0/24".parse().unwrap()),
            network: Some("10.2.0.0/16".parse().unwrap()),
            ..Keys::default()
        };
        let error = decide(&keys, None, None).unwrap_err();
        assert!(error.to_string().contains("10.1.0.0/24"));
    }

    #[test]
    fn tap_is_refused_for_now_and_says_what_to_use() {
        let json = br#"{"cniVersion":"1.0.0","name":"n","type":"cni-hpk","datapath":"tap"}"#;
        let error = Parsed::parse(json).unwrap_err();
        assert!(error.to_string().contains("veth"));
    }

    #[test]
    fn host_local_is_told_subnet_gateway_and_folder() {
        let json = br#"{"cniVersion":"1.0.0","name":"n","type":"cni-hpk","subnet":"10.244.3.0/24","dataDir":"/d"}"#;
        let parsed = Parsed::parse(json).unwrap();
        let conf = parsed.ipam_conf(&parsed.resolve().unwrap());
        assert_eq!(conf["ipam"]["type"], "host-local");
        assert_eq!(conf["ipam"]["dataDir"], "/d/networks");
        assert_eq!(conf["ipam"]["ranges"][0][0]["subnet"], "10.244.3.0/24");
    }
}
