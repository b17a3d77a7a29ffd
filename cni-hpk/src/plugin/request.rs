//! What a caller asks for one attachment: addresses, a hardware address,
//! resolver settings. By convention (CNI's CONVENTIONS.md) in `runtimeConfig`,
//! else in `args`, else in `CNI_ARGS`.

use std::net::IpAddr;

use hpk_cni_types::{Args, Dns, NetConf};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::config::Keys;
use super::error::Error;
use crate::netlink::Mac;

/// What is asked for. Empty: as we like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    pub ips: Vec<IpAddr>,
    pub mac: Option<Mac>,
    pub dns: Option<Dns>,
}

/// The keys of `CNI_ARGS` that mean something to us.
const KNOWN_ARGS: [&str; 2] = ["IP", "MAC"];

/// Capability `dns`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct DnsArgument {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Request {
    /// Reads all three places; the error names the value that is wrong. Other
    /// capabilities' arguments (`portMappings`, `cgroupPath`, …) are for others.
    pub fn read(conf: &NetConf<Keys>, args: &Args) -> Result<Self, Error> {
        args.refuse_unknown(&KNOWN_ARGS)?;
        let runtime = &conf.runtime_config;
        let block = conf.plugin.args.as_ref().and_then(|args| args.get("cni"));
        let structured = |key: &str| block.and_then(|block| block.get(key));
        let ips = match (runtime.get("ips"), structured("ips"), args.get("IP")) {
            (Some(value), ..) => read_ips("runtimeConfig.ips", value)?,
            (None, Some(value), _) => read_ips("args.cni.ips", value)?,
            (None, None, Some(text)) => vec![read_ip("CNI_ARGS IP", text)?],
            (None, None, None) => Vec::new(),
        };
        let mac = match (runtime.get("mac"), structured("mac"), args.get("MAC")) {
            (Some(value), ..) => read_mac("runtimeConfig.mac", value)?,
            (None, Some(value), _) => read_mac("args.cni.mac", value)?,
            (None, None, Some(text)) => read_mac("CNI_ARGS MAC", &text.into())?,
            (None, None, None) => None,
        };
        let dns = runtime.get("dns").map(read_dns).transpose()?;
        Ok(Self { ips, mac, dns })
    }
}

fn read_ips(key: &str, value: &Value) -> Result<Vec<IpAddr>, Error> {
    let odd = || Error::Invalid(format!("{key} {value} is not a list of addresses"));
    let texts = value.as_array().ok_or_else(odd)?;
    let read = |text: &Value| read_ip(key, text.as_str().ok_or_else(odd)?);
    texts.iter().map(read).collect()
}

/// An address; a prefix length may follow, which is the range's anyway.
fn read_ip(key: &str, text: &str) -> Result<IpAddr, Error> {
    let address = text.parse::<IpAddr>();
    address
        .or_else(|_| text.parse::<IpNet>().map(|net| net.addr()))
        .map_err(|_| Error::Invalid(format!("{key} {text:?} is not an address")))
}

fn read_mac(key: &str, value: &Value) -> Result<Option<Mac>, Error> {
    let odd = || Error::Invalid(format!("{key} {value} is not a station's hardware address"));
    let text = value.as_str().ok_or_else(odd)?;
    if text.is_empty() {
        return Ok(None);
    }
    let mac = Mac::try_from(text.to_owned()).map_err(|_| odd())?;
    let is_group = mac.0[0] & 1 == 1;
    match is_group || mac == Mac::default() {
        true => Err(odd()),
        false => Ok(Some(mac)),
    }
}

fn read_dns(value: &Value) -> Result<Dns, Error> {
    let argument: DnsArgument = serde_json::from_value(value.clone())
        .map_err(|error| Error::Invalid(format!("runtimeConfig.dns {value}: {error}")))?;
    Ok(Dns {
        nameservers: argument.servers,
        search: argument.searches,
        options: argument.options,
        domain: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(keys: &str, args: &str) -> Result<Request, Error> {
        let json = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"cni-hpk",{keys}}}"#);
        let conf = NetConf::parse(json.as_bytes()).unwrap();
        Request::read(&conf, &Args::parse(args)?)
    }

    #[test]
    fn the_capability_goes_before_args_and_these_before_cni_args() {
        let all = r#""runtimeConfig":{"ips":["10.0.0.7/24"],"mac":"02:00:00:00:00:01"},
            "args":{"cni":{"ips":["10.0.0.8"],"mac":"02:00:00:00:00:02"}}"#;
        let args = "IP=10.0.0.9;MAC=02:00:00:00:00:03";
        let request = read(all, args).unwrap();
        assert_eq!(request.ips, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(request.mac, Some(Mac([2, 0, 0, 0, 0, 1])));
        let request = read(r#""args":{"cni":{"ips":["10.0.0.8"]}}"#, args).unwrap();
        assert_eq!(request.ips, ["10.0.0.8".parse::<IpAddr>().unwrap()]);
        assert_eq!(request.mac, Some(Mac([2, 0, 0, 0, 0, 3])));
    }

    #[test]
    fn other_capabilities_are_ignored_and_dns_is_translated() {
        let request = read(
            r#""runtimeConfig":{"cgroupPath":"/x","portMappings":[],
               "dns":{"servers":["10.43.0.10"],"searches":["a.b"]}}"#,
            "IgnoreUnknown=1;K8S_POD_NAME=web",
        )
        .unwrap();
        let dns = request.dns.unwrap();
        assert_eq!(
            (dns.nameservers, dns.search),
            (vec!["10.43.0.10".to_owned()], vec!["a.b".to_owned()])
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (keys, args, word) in [
            (r#""runtimeConfig":{"ips":"10.0.0.1"}"#, "", "10.0.0.1"),
            (
                r#""runtimeConfig":{"ips":["10.0.0.256"]}"#,
                "",
                "10.0.0.256",
            ),
            (
                r#""runtimeConfig":{"mac":"01:00:5e:00:00:01"}"#,
                "",
                "01:00:5e",
            ),
            (r#""runtimeConfig":{"mac":7}"#, "", "7"),
            (r#""runtimeConfig":{"dns":{"servers":7}}"#, "", "7"),
            (r#""mtu":1500"#, "K8S_POD_NAME=web", "K8S_POD_NAME"),
            (r#""mtu":1500"#, "IP=nowhere", "nowhere"),
        ] {
            let error = read(keys, args).unwrap_err();
            assert!(error.to_string().contains(word), "{keys}: {error}");
        }
    }
}
