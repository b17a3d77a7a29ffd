//! Flannel's `subnet.env` and the overlay's state file: what a bubble's
//! network is, as its daemons publish it.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
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
    /// A line that flanneld has not written yet, or never does.
    #[error("{path}: no {key}")]
    Incomplete { path: PathBuf, key: &'static str },
    #[error("{path}: {problem}")]
    Format { path: PathBuf, problem: String },
}

impl Error {
    /// Whether it is only a matter of time: flanneld or the overlay's daemon
    /// has yet to write the file.
    pub fn is_not_yet(&self) -> bool {
        match self {
            Self::Read { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Incomplete { .. } => true,
            Self::Format { .. } => false,
        }
    }
}

/// `subnet.env`, written by flanneld. At least one family is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    pub ipv4: Option<Lease<Ipv4Net>>,
    pub ipv6: Option<Lease<Ipv6Net>>,
    /// Bytes.
    pub mtu: u32,
    /// Whether flanneld masquerades, so that the plugin needn't.
    pub ip_masq: bool,
}

/// What flanneld leased in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease<N> {
    /// All pods; the network that has `subnet` first.
    pub networks: Vec<N>,
    /// The pods of this bubble. flanneld writes its first host address with
    /// the prefix; here it is the network itself.
    pub subnet: N,
}

impl<N: Copy> Lease<N> {
    /// The network that has the subnet.
    pub fn network(&self) -> N {
        self.networks.first().copied().unwrap_or(self.subnet)
    }
}

impl SubnetEnv {
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|problem| problem.at(path))
    }

    /// Parses the file's text. Lines of other keys are passed over, as
    /// Flannel's own plugin does; of a key given twice the last counts.
    pub fn parse(text: &[u8]) -> Result<Self, Problem> {
        let text = String::from_utf8_lossy(text);
        let value = |key: &'static str| {
            let mut pairs = text.lines().filter_map(|line| line.trim().split_once('='));
            pairs
                .rfind(|(name, _)| *name == key)
                .map(|(_, value)| value.trim())
        };
        let required = |key| value(key).ok_or(Problem::Missing(key));
        let ipv4 = lease(
            &value,
            ["FLANNEL_NETWORK", "FLANNEL_SUBNET"],
            |net| match net {
                IpNet::V4(net) => Some(net),
                IpNet::V6(_) => None,
            },
        )?;
        let ipv6 = lease(
            &value,
            ["FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"],
            |net| match net {
                IpNet::V6(net) => Some(net),
                IpNet::V4(_) => None,
            },
        )?;
        if ipv4.is_none() && ipv6.is_none() {
            return Err(Problem::Missing("FLANNEL_SUBNET"));
        }
        let mtu = required("FLANNEL_MTU")?;
        let ip_masq = required("FLANNEL_IPMASQ")?;
        Ok(Self {
            ipv4,
            ipv6,
            mtu: mtu
                .parse()
                .map_err(|_| Problem::odd("FLANNEL_MTU", mtu, "a number of bytes"))?,
            ip_masq: match ip_masq {
                "true" => true,
                "false" => false,
                _ => return Err(Problem::odd("FLANNEL_IPMASQ", ip_masq, "true or false")),
            },
        })
    }
}

/// Why a text is no `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("no {0}")]
    Missing(&'static str),
    #[error("{0}")]
    Odd(String),
}

impl Problem {
    fn odd(key: &str, value: &str, wanted: &str) -> Self {
        Self::Odd(format!("{key} {value:?} is not {wanted}"))
    }

    fn at(self, path: &Path) -> Error {
        let path = path.to_owned();
        match self {
            Self::Missing(key) => Error::Incomplete { path, key },
            Self::Odd(problem) => Error::Format { path, problem },
        }
    }
}

/// A family's two lines; `family` picks its networks.
fn lease<'a, N: Copy + Into<IpNet>>(
    value: &impl Fn(&'static str) -> Option<&'a str>,
    [network_key, subnet_key]: [&'static str; 2],
    family: fn(IpNet) -> Option<N>,
) -> Result<Option<Lease<N>>, Problem> {
    let parse = |key: &'static str, text: &str| {
        let net = text.trim().parse::<IpNet>().ok();
        net.and_then(|net| family(net.trunc()))
            .ok_or_else(|| Problem::odd(key, text, "a network of that family"))
    };
    let (networks, subnet) = match (value(network_key), value(subnet_key)) {
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(Problem::Missing(subnet_key)),
        (None, Some(_)) => return Err(Problem::Missing(network_key)),
        // flanneld separates several networks by commas.
        (Some(networks), Some(subnet)) => (networks.split(','), parse(subnet_key, subnet)?),
    };
    let mut networks = networks
        .map(|text| parse(network_key, text))
        .collect::<Result<Vec<N>, _>>()?;
    let subnet_net: IpNet = subnet.into();
    let home = networks
        .iter()
        .position(|network| (*network).into().contains(&subnet_net))
        .ok_or_else(|| {
            Problem::Odd(format!(
                "{subnet_key} {subnet_net} is not within {network_key}"
            ))
        })?;
    networks.swap(0, home);
    Ok(Some(Lease { networks, subnet }))
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

    const V4: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n";
    const V6: &str = "FLANNEL_IPV6_NETWORK=fd00:10::/48\nFLANNEL_IPV6_SUBNET=fd00:10:0:3::1/64\n";
    const REST: &str = "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

    fn parse(text: &str) -> Result<SubnetEnv, Problem> {
        SubnetEnv::parse(text.as_bytes())
    }

    #[test]
    fn the_subnet_is_the_network_of_flannels_address() {
        let env = parse(&format!("{V4}{REST}")).unwrap();
        let lease = env.ipv4.unwrap();
        assert_eq!(lease.subnet.to_string(), "10.244.3.0/24");
        assert_eq!(lease.network().to_string(), "10.244.0.0/16");
        assert_eq!((env.ipv6, env.mtu, env.ip_masq), (None, 1450, false));
    }

    #[test]
    fn either_family_may_be_missing_but_not_both() {
        let both = parse(&format!("{V4}{V6}{REST}")).unwrap();
        assert!(both.ipv4.is_some());
        let lease = both.ipv6.unwrap();
        assert_eq!(lease.subnet.to_string(), "fd00:10:0:3::/64");
        assert!(parse(&format!("{V6}{REST}")).unwrap().ipv4.is_none());
        assert_eq!(parse(REST), Err(Problem::Missing("FLANNEL_SUBNET")));
    }

    #[test]
    fn of_several_networks_the_subnets_own_is_first() {
        let text = format!("{V4}{REST}").replace("=10.244.0.0/16", "=10.7.0.0/16,10.244.0.0/16");
        let lease = parse(&text).unwrap().ipv4.unwrap();
        assert_eq!(lease.network().to_string(), "10.244.0.0/16");
        assert_eq!(lease.networks.len(), 2);
    }

    #[test]
    fn a_line_that_is_missing_may_come_yet_and_an_odd_one_is_named() {
        let text = format!("{V4}{REST}");
        for key in ["FLANNEL_NETWORK", "FLANNEL_MTU", "FLANNEL_IPMASQ"] {
            let problem = parse(&text.replace(key, "X")).unwrap_err();
            assert_eq!(problem.to_string(), format!("no {key}"));
            assert!(problem.at(Path::new("/x")).is_not_yet());
        }
        for (right, wrong) in [
            ("1450", "much"),
            ("10.244.3.1/24", "10.244.3.1/240"),
            ("10.244.3.1/24", "10.9.3.0/24"),
            ("10.244.3.1/24", "fd00::/64"),
            ("false", "maybe"),
        ] {
            let problem = parse(&text.replace(right, wrong)).unwrap_err();
            assert!(problem.to_string().contains(wrong), "{problem}");
            assert!(!problem.at(Path::new("/x")).is_not_yet());
        }
    }
}
