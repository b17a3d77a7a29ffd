//! Flannel's `subnet.env` and the overlay's state file: what a bubble's
//! network is, as its daemons publish it.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// A file that couldn't be read, or says something else than it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}: {problem}")]
    Format { path: PathBuf, problem: String },
}

/// `subnet.env`, written by flanneld.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// All pods.
    pub network: Ipv4Net,
    /// The pods of this bubble. flanneld writes its first host address with
    /// the prefix; here it is the network itself.
    pub subnet: Ipv4Net,
    /// Bytes.
    pub mtu: u32,
    /// Whether flanneld masquerades, so that the plugin needn't.
    pub ip_masq: bool,
}

impl SubnetEnv {
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|problem| Error::Format {
            path: path.to_owned(),
            problem,
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value = |key: &str| {
            text.lines()
                .filter_map(|line| line.trim().split_once('='))
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value)
                .ok_or_else(|| format!("no {key}"))
        };
        let net = |key: &str| {
            let text = value(key)?;
            text.parse::<Ipv4Net>()
                .map_err(|_| format!("{key} {text:?} is not an IPv4 network"))
        };
        let mtu = value("FLANNEL_MTU")?;
        Ok(Self {
            network: net("FLANNEL_NETWORK")?.trunc(),
            subnet: net("FLANNEL_SUBNET")?.trunc(),
            mtu: mtu
                .parse()
                .map_err(|_| format!("FLANNEL_MTU {mtu:?} is not a number"))?,
            ip_masq: value("FLANNEL_IPMASQ")? == "true",
        })
    }
}

/// The overlay's state file, written by `hpk-net-daemon` once the device is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayState {
    /// `kernel` or `host`.
    pub mode: String,
    /// Of the device, and of every pod. Bytes.
    pub mtu: u32,
    pub node_ip: Ipv4Addr,
    pub device: String,
}

impl OverlayState {
    /// Reads the file; `None` where there is none, since a bubble may have no
    /// overlay.
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(Error::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| Error::Format {
                path: path.to_owned(),
                problem: error.to_string(),
            })
    }

    /// Writes the file whole or not at all.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let part = path.with_extension("part");
        std::fs::write(&part, serde_json::to_vec(self)?)?;
        std::fs::rename(&part, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

    #[test]
    fn the_subnet_is_the_network_of_flannels_address() {
        let env = SubnetEnv::parse(TEXT).unwrap();
        assert_eq!(env.subnet.to_string(), "10.244.3.0/24");
        assert_eq!(env.network.to_string(), "10.244.0.0/16");
        assert_eq!(env.mtu, 1450);
        assert!(!env.ip_masq);
    }

    #[test]
    fn a_missing_or_odd_line_is_named() {
        let error = SubnetEnv::parse(&TEXT.replace("FLANNEL_SUBNET", "X")).unwrap_err();
        assert!(error.contains("FLANNEL_SUBNET"));
        let error = SubnetEnv::parse(&TEXT.replace("1450", "much")).unwrap_err();
        assert!(error.contains("much"));
    }
}
