//! The plugin's configuration: stdin, with what Flannel and the overlay say,
//! validated.

use std::path::{Path, PathBuf};

use hpk_cni_types::{NetConf, env::check_ifname};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::error::Error;
use super::ipam;
use super::locks::hash;
use super::pools::{self, Pool, PoolKeys, RangeSet};
use crate::netlink::Mac;
use crate::netlink::nat::{Backend, Family};
use crate::relay::wire::Form;
use crate::subnet::{self, OverlayState, SubnetEnv};

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Keys {
    /// Flannel's file; `/run/flannel/subnet.env` unless the pools are given.
    pub subnet_file: Option<PathBuf>,
    /// State of the overlay; its MTU goes before Flannel's.
    pub overlay_file: Option<PathBuf>,
    /// The pods of this bubble, without Flannel: one network, or a list of
    /// them (an address of each).
    #[serde(deserialize_with = "one_or_many")]
    pub subnet: Vec<String>,
    /// The same in host-local's words: an address of each inner list.
    pub ranges: Vec<Vec<PoolKeys>>,
    /// All pods, without Flannel: one network or a list; those of `subnet` and
    /// `ranges` if left out.
    #[serde(deserialize_with = "one_or_many")]
    pub network: Vec<String>,
    pub bridge: Option<String>,
    pub datapath: Datapath,
    /// How frames of datapath `tap` come to the bridge's side.
    pub tap_form: Form,
    /// Folder of the socket of a bubble's relay: this run is outside that
    /// bubble, and only the pod's side is its own.
    pub relay: Option<PathBuf>,
    /// The caller outside the bubble whose the pod's side is; set by the relay.
    pub pod_side_of: Option<String>,
    /// Masquerade what leaves `network`. Left out: unless flanneld does.
    pub ip_masq: Option<bool>,
    /// With what. Left out: what works here.
    pub ip_masq_backend: Option<Backend>,
    /// Bytes; goes before the files'.
    pub mtu: Option<u32>,
    /// Attachments, the lock and host-local's leases.
    pub data_dir: Option<PathBuf>,
    /// Further keys for the IPAM plugin, `host-local` unless it has a `type`.
    pub ipam: Map<String, Value>,
    /// Another plugin's configuration: it makes the interface, not we.
    pub delegate: Option<Map<String, Value>>,
    /// What the caller asks for one attachment; see [`super::request`].
    pub args: Option<Value>,
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
/// The least a host must take, bytes (RFC 791, RFC 8200).
const LEAST_MTU: u32 = 576;
const LEAST_MTU_IPV6: u32 = 1280;
/// A rule's comment names them all, in at most 254 bytes.
const MOST_NETWORKS: usize = 4;

/// What stdin says, looked at as far as DEL needs it.
#[derive(Debug)]
pub struct Parsed {
    pub conf: NetConf<Keys>,
    pub data_dir: PathBuf,
}

/// A configuration that can be acted upon.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The network's name.
    pub name: String,
    pub bridge: String,
    /// The pods of this bubble: an attachment gets an address of each set.
    pub ranges: Vec<RangeSet>,
    /// Of attachments whose ranges came with them: the bridge serves these too.
    pub others: Vec<Pool>,
    /// Of the bridge.
    pub mac: Mac,
    /// All pods; among them sources are kept.
    pub networks: Vec<IpNet>,
    pub mtu: u32,
    pub ip_masq: bool,
    pub nat: Option<Backend>,
}

impl Config {
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.ranges.iter().flatten()
    }

    /// What the bridge serves.
    pub fn served(&self) -> impl Iterator<Item = &Pool> {
        self.pools().chain(&self.others)
    }

    pub fn has(&self, family: Family) -> bool {
        self.served().any(|pool| Family::of(pool.subnet) == family)
    }
}

impl Parsed {
    pub fn parse(stdin: &[u8]) -> Result<Self, Error> {
        let conf: NetConf<Keys> = NetConf::parse(stdin)?;
        let bridge = conf.plugin.bridge.as_deref().unwrap_or(BRIDGE);
        check_ifname(bridge)
            .map_err(|_| Error::Invalid(format!("bridge {bridge:?} is not an interface name")))?;
        check_relay(&conf.plugin)?;
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
        self.resolve_beside(Vec::new())
    }

    /// Whether ranges came with this attachment.
    pub fn has_asked_ranges(&self) -> bool {
        let ranges = self.conf.runtime_config.get("ipRanges");
        ranges.is_some_and(|it| it.as_array().is_none_or(|it| !it.is_empty()))
    }

    /// Whether they are to come with each: host-local is asked for by name, and
    /// neither ranges nor Flannel's file are given.
    pub fn awaits_ranges(&self) -> bool {
        let keys = &self.conf.plugin;
        keys.subnet_file.is_none()
            && keys
                .ipam
                .get("type")
                .is_some_and(|it| it == ipam::HOST_LOCAL)
    }

    /// The same as [`Self::resolve`], with the pools of `others` whose ranges came with them.
    pub fn resolve_beside(&self, others: Vec<Pool>) -> Result<Config, Error> {
        let keys = &self.conf.plugin;
        let overlay = match &keys.overlay_file {
            Some(path) => OverlayState::load(path).map_err(not_ready)?,
            None => None,
        };
        let own = self.own_ranges()?;
        let flannel = match own.is_empty() {
            false => None,
            true => {
                let path = keys
                    .subnet_file
                    .as_deref()
                    .unwrap_or(Path::new(SUBNET_FILE));
                Some(SubnetEnv::load(path).map_err(not_ready)?)
            }
        };
        let name = self.conf.name.clone();
        let asked = self.has_asked_ranges();
        let (flannel, overlay) = (flannel.as_ref(), overlay.as_ref());
        decide(name, keys, own, asked, others, flannel, overlay)
    }

    /// The pools that the configuration gives itself: with its own keys, or
    /// in `ipam`, where the reference plugins have them. Those that came with
    /// the attachment (capability `ipRanges`) go first, as with host-local.
    fn own_ranges(&self) -> Result<Vec<RangeSet>, Error> {
        let keys = &self.conf.plugin;
        let mut sets: Vec<Vec<PoolKeys>> = keys.subnet.iter().map(|it| vec![whole(it)]).collect();
        sets.extend(keys.ranges.iter().cloned());
        if sets.is_empty() {
            sets = ipam::ranges_in(&keys.ipam)?;
        }
        if let Some(asked) = self.conf.runtime_config.get("ipRanges") {
            let asked: Vec<Vec<PoolKeys>> = serde_json::from_value(asked.clone())
                .map_err(|error| Error::Invalid(format!("ipRanges {asked}: {error}")))?;
            sets.splice(0..0, asked);
        }
        let read_set = |set: &Vec<PoolKeys>| set.iter().map(Pool::read).collect();
        sets.iter()
            .map(read_set)
            .collect::<Result<_, _>>()
            .map_err(Error::Invalid)
    }

    /// What the IPAM plugin reads on stdin: all that we read (CNI spec 4,
    /// "Delegated Plugin protocol"), with `ipam` completed.
    pub fn ipam_conf(&self, config: &Config) -> Value {
        let mut conf = self.passed_on();
        conf["ipam"] = self.ipam_block(config).into();
        conf
    }

    /// The `ipam` block, completed with the pools if host-local is to be run.
    fn ipam_block(&self, config: &Config) -> Map<String, Value> {
        let mut block = self.conf.plugin.ipam.clone();
        let kind = block
            .entry("type")
            .or_insert_with(|| ipam::HOST_LOCAL.into());
        if kind == ipam::HOST_LOCAL {
            block.remove("subnet");
            block
                .entry("dataDir")
                .or_insert_with(|| self.data_dir.join("networks").display().to_string().into());
            let range = |pool: &Pool| {
                json!({
                    "subnet": pool.subnet.to_string(),
                    "gateway": pool.gateway.to_string(),
                    "rangeStart": pool.first.to_string(),
                    "rangeEnd": pool.last.to_string(),
                })
            };
            let set = |set: &RangeSet| set.iter().map(range).collect::<Value>();
            let ranges = config.ranges.iter().map(set).collect();
            block.insert("ranges".to_owned(), ranges);
        }
        block
    }

    /// Stdin, but for what is ours alone or of this run alone.
    fn passed_on(&self) -> Value {
        let mut conf = self.conf.source.clone();
        conf.retain(|key, _| !key.starts_with("cni.dev/") && key != "prevResult");
        conf.into()
    }

    /// What a delegated plugin reads on stdin: the `delegate` block, completed
    /// as Flannel's own plugin completes it.
    pub fn delegate_conf(
        &self,
        delegate: &Map<String, Value>,
        config: &Config,
    ) -> Result<Value, Error> {
        for key in ["name", "ipam"] {
            if let Some(value) = delegate.get(key) {
                return Err(Error::Invalid(format!(
                    "delegate must not have {key:?} (it has {value}): it is set from the network"
                )));
            }
        }
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
        let mut block = self.ipam_block(config);
        let routes = block.entry("routes").or_insert_with(|| json!([]));
        let all_pods = config
            .networks
            .iter()
            .map(|net| json!({"dst": net.to_string()}));
        match routes {
            Value::Array(routes) => routes.extend(all_pods),
            other => {
                return Err(Error::Invalid(format!("ipam.routes {other} is not a list")));
            }
        }
        conf.insert("ipam".to_owned(), block.into());
        for key in ["runtimeConfig", "args"] {
            if let Some(value) = self.conf.source.get(key) {
                conf.insert(key.to_owned(), value.clone());
            }
        }
        Ok(Value::Object(conf))
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let odd = |value: &Value| {
        serde::de::Error::custom(format!(
            "{value} is neither a network nor a list of networks"
        ))
    };
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| odd(value));
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(Vec::new()),
        Value::Array(values) => values.iter().map(text).collect(),
        value => Ok(vec![text(&value)?]),
    }
}

fn whole(subnet: &str) -> PoolKeys {
    PoolKeys {
        subnet: Some(subnet.to_owned()),
        ..PoolKeys::default()
    }
}

/// A relay's folder is a path on this host, and goes with no other datapath.
fn check_relay(keys: &Keys) -> Result<(), Error> {
    let far = keys.relay.is_some() || keys.pod_side_of.is_some();
    if far && keys.datapath == Datapath::Veth {
        return Err(Error::Invalid(
            "datapath \"veth\" needs no relay: leave it out, or use \"tap\"".to_owned(),
        ));
    }
    if far && keys.delegate.is_some() {
        return Err(Error::Invalid(
            "a relay and a delegate exclude each other".to_owned(),
        ));
    }
    match &keys.relay {
        Some(folder) if !folder.is_absolute() => Err(Error::Invalid(format!(
            "relay {folder:?} is not an absolute path"
        ))),
        _ => Ok(()),
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
    name: String,
    keys: &Keys,
    own: Vec<RangeSet>,
    asked: bool,
    others: Vec<Pool>,
    flannel: Option<&SubnetEnv>,
    overlay: Option<&OverlayState>,
) -> Result<Config, Error> {
    let ranges = match flannel {
        None => own,
        Some(env) => flannel_ranges(env).map_err(Error::Invalid)?,
    };
    pools::check(&ranges).map_err(Error::Invalid)?;
    let networks = decide_networks(keys, &ranges, &others, flannel)?;
    // It tells the first gateway, unless each attachment may have another.
    let mac = match asked {
        true => Mac::of_number(hash(&name)),
        false => Mac::of(ranges[0][0].gateway),
    };
    let mtu = keys
        .mtu
        .or(overlay.map(|state| state.mtu))
        .or(flannel.map(|env| env.mtu))
        .unwrap_or(MTU);
    let config = Config {
        name,
        bridge: keys.bridge.clone().unwrap_or_else(|| BRIDGE.to_owned()),
        ranges,
        others,
        mac,
        networks,
        mtu,
        ip_masq: keys
            .ip_masq
            .unwrap_or(!flannel.is_some_and(|env| env.ip_masq)),
        nat: keys.ip_masq_backend,
    };
    let least = match config.has(Family::Ipv6) {
        true => LEAST_MTU_IPV6,
        false => LEAST_MTU,
    };
    if !(least..=65535).contains(&mtu) {
        return Err(Error::Invalid(format!(
            "MTU {mtu} is not between {least} and 65535"
        )));
    }
    Ok(config)
}

fn flannel_ranges(env: &SubnetEnv) -> Result<Vec<RangeSet>, String> {
    let v4 = env.ipv4.as_ref().map(|lease| IpNet::from(lease.subnet));
    let v6 = env.ipv6.as_ref().map(|lease| IpNet::from(lease.subnet));
    let subnets = v4.into_iter().chain(v6);
    subnets.map(|net| Ok(vec![Pool::of(net)?])).collect()
}

fn decide_networks(
    keys: &Keys,
    ranges: &[RangeSet],
    others: &[Pool],
    flannel: Option<&SubnetEnv>,
) -> Result<Vec<IpNet>, Error> {
    let pools = || ranges.iter().flatten().chain(others);
    let subnets = || pools().map(|pool| pool.subnet);
    let networks = match flannel {
        _ if !keys.network.is_empty() => keys
            .network
            .iter()
            .map(|text| text.parse().map(|net: IpNet| net.trunc()).map_err(|_| text))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|text| Error::Invalid(format!("network {text:?} is not a network")))?,
        Some(env) => {
            let v4 = env.ipv4.iter().flat_map(|lease| &lease.networks);
            let v6 = env.ipv6.iter().flat_map(|lease| &lease.networks);
            let v6 = v6.map(|net| IpNet::from(*net));
            v4.map(|net| IpNet::from(*net)).chain(v6).collect()
        }
        None => IpNet::aggregate(&subnets().collect()),
    };
    if let Some(subnet) = subnets().find(|net| !networks.iter().any(|all| all.contains(net))) {
        return Err(Error::Invalid(format!(
            "subnet {subnet} is not within network {}",
            list(&networks)
        )));
    }
    for family in Family::ALL {
        let of_family = networks.iter().filter(|net| Family::of(**net) == family);
        if of_family.count() > MOST_NETWORKS {
            return Err(Error::Invalid(format!(
                "network {}: more than {MOST_NETWORKS} of a family",
                list(&networks)
            )));
        }
    }
    Ok(networks)
}

fn list(networks: &[IpNet]) -> String {
    let texts: Vec<String> = networks.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests;
