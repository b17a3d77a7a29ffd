//! A bubble's record: what the others must know to send it frames. In etcd at
//! `/hpk/overlay/peers/10.244.3.0-24`, its lease's subnet being the key.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use hpk_frames::codec::table::{Peer, Table};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::config::{Config, Mode};
use super::plan::Device;
use crate::netlink::{Mac, Vxlan};
use crate::subnet::Lease;

/// Outer Ethernet, IPv4, UDP and VXLAN headers, bytes (RFC 7348).
pub const OVERHEAD: u32 = 50;

/// What is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub node: String,
    pub host_ip: Ipv4Addr,
    /// `kernel` or `host`. The former can't promise its source port.
    pub mode: String,
    pub udp_port: u16,
    pub vni: u32,
    pub mac: Mac,
    /// Of the device, bytes.
    pub mtu: u32,
    pub node_ip: Ipv4Addr,
    /// Of its lease, where the pods have IPv6. Its first address is the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
}

impl Record {
    /// The node's addresses on the overlay: the first of each subnet.
    pub fn node_ips(&self) -> Vec<IpAddr> {
        node_ips(self.node_ip, self.subnet6)
    }
}

fn node_ips(node_ip: Ipv4Addr, subnet6: Option<Ipv6Net>) -> Vec<IpAddr> {
    let node_ip6 = subnet6.map(|subnet| IpAddr::from(subnet.network()));
    std::iter::once(node_ip.into()).chain(node_ip6).collect()
}

/// What flanneld leased to this bubble. IPv4 it must be, for the records'
/// keys; IPv6 as well it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leases {
    pub ipv4: Lease<Ipv4Net>,
    pub ipv6: Option<Lease<Ipv6Net>>,
}

impl fmt::Display for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ipv4.subnet)?;
        match &self.ipv6 {
            Some(ipv6) => write!(f, " and {}", ipv6.subnet),
            None => Ok(()),
        }
    }
}

/// The other bubbles, by subnet.
pub type Peers = BTreeMap<Ipv4Net, Record>;

/// This bubble.
#[derive(Clone, Debug)]
pub struct Own {
    pub subnet: Ipv4Net,
    pub network: Ipv4Net,
    /// All pods' IPv6 network, where they have IPv6.
    pub network6: Option<Ipv6Net>,
    pub record: Record,
    pub device: Device,
}

impl Own {
    pub fn new(config: &Config, leases: &Leases) -> Self {
        let lease = &leases.ipv4;
        let subnet6 = leases.ipv6.as_ref().map(|lease| lease.subnet);
        // Flannel's own device has this address too: the subnet's first.
        let node_ip = lease.subnet.network();
        let mac = Mac::of_ipv4(node_ip);
        let mtu = config.mtu.saturating_sub(OVERHEAD);
        Self {
            subnet: lease.subnet,
            network: lease.network(),
            network6: leases.ipv6.as_ref().map(Lease::network),
            record: Record {
                node: config.node.clone(),
                host_ip: config.host_ip,
                mode: config.mode.as_str().to_owned(),
                udp_port: config.udp_port,
                vni: config.vni,
                mac,
                mtu,
                node_ip,
                subnet6,
            },
            device: Device {
                name: config.device.clone(),
                mode: config.mode,
                vxlan: Vxlan {
                    vni: config.vni,
                    port: config.listen_port.unwrap_or(config.udp_port),
                    learning: false,
                },
                mac,
                mtu,
                node_ips: node_ips(node_ip, subnet6),
            },
        }
    }

    /// The key of our record.
    pub fn key(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.subnet.to_string().replace('/', "-"))
    }

    /// Reads a peer's record; `None` for our own. The error says why it can't
    /// be a peer's.
    pub fn read(
        &self,
        prefix: &str,
        key: &str,
        value: &[u8],
    ) -> Result<Option<(Ipv4Net, Record)>, String> {
        let subnet = self.read_key(prefix, key)?;
        if subnet == self.subnet {
            return Ok(None);
        }
        let mut record: Record =
            serde_json::from_slice(value).map_err(|error| error.to_string())?;
        if !self.network.contains(&subnet) {
            return Err(format!("subnet {subnet} is not within {}", self.network));
        }
        if record.node_ip != subnet.network() {
            return Err(format!(
                "node address {} is not of {subnet}",
                record.node_ip
            ));
        }
        if record.vni != self.record.vni {
            return Err(format!(
                "VNI {} is not ours, {}",
                record.vni, self.record.vni
            ));
        }
        if record.mac == self.record.mac {
            return Err(format!("hardware address {} is ours", record.mac));
        }
        if let Some(subnet6) = record.subnet6 {
            match self.network6 {
                Some(network) if !network.contains(&subnet6) => {
                    return Err(format!("subnet {subnet6} is not within {network}"));
                }
                Some(_) => {}
                // Nothing here could answer.
                None => record.subnet6 = None,
            }
        }
        Ok(Some((subnet, record)))
    }

    /// What the data path needs of them.
    pub fn table(&self, peers: &Peers) -> Table {
        let peer = |(subnet, record): (&Ipv4Net, &Record)| Peer {
            mac: record.mac.0,
            address: SocketAddrV4::new(record.host_ip, record.udp_port),
            kernel: record.mode != Mode::Host.as_str(),
            subnet: *subnet,
            subnet6: record.subnet6,
        };
        let peers = peers.iter().map(peer).collect();
        Table::new(self.record.vni, self.record.mac.0, peers)
    }

    /// The subnet a key stands for.
    pub fn read_key(&self, prefix: &str, key: &str) -> Result<Ipv4Net, String> {
        key.strip_prefix(prefix)
            .and_then(|rest| rest.replace('-', "/").parse::<Ipv4Net>().ok())
            .ok_or_else(|| "the key ends with no subnet".to_owned())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn own() -> Own {
        let subnet: Ipv4Net = "10.244.3.0/24".parse().unwrap();
        Own {
            subnet,
            network: "10.244.0.0/16".parse().unwrap(),
            network6: "fd00::/32".parse().ok(),
            record: record(subnet),
            device: Device {
                name: "hpk-vxlan".to_owned(),
                mode: Mode::Kernel,
                vxlan: Vxlan {
                    vni: 77,
                    port: 8472,
                    learning: false,
                },
                mac: Mac::of_ipv4(subnet.network()),
                mtu: 1450,
                node_ips: vec![subnet.network().into()],
            },
        }
    }

    pub fn record(subnet: Ipv4Net) -> Record {
        Record {
            node: "node".to_owned(),
            host_ip: "192.0.2.9".parse().unwrap(),
            mode: "kernel".to_owned(),
            udp_port: 9999,
            vni: 77,
            mac: Mac::of_ipv4(subnet.network()),
            mtu: 1450,
            node_ip: subnet.network(),
            subnet6: None,
        }
    }

    const PREFIX: &str = "/hpk/overlay/peers/";

    #[test]
    fn a_record_is_read_back_under_its_key() {
        let subnet: Ipv4Net = "10.244.5.0/24".parse().unwrap();
        let text = serde_json::to_vec(&record(subnet)).unwrap();
        let read = own().read(PREFIX, "/hpk/overlay/peers/10.244.5.0-24", &text);
        assert_eq!(read, Ok(Some((subnet, record(subnet)))));
        assert_eq!(own().key(PREFIX), "/hpk/overlay/peers/10.244.3.0-24");
    }

    #[test]
    fn our_own_record_is_no_peers() {
        let text = serde_json::to_vec(&own().record).unwrap();
        assert_eq!(own().read(PREFIX, &own().key(PREFIX), &text), Ok(None));
    }

    #[test]
    fn records_that_contradict_themselves_or_us_are_refused() {
        let subnet: Ipv4Net = "10.244.5.0/24".parse().unwrap();
        let key = "/hpk/overlay/peers/10.244.5.0-24";
        let refuse = |key: &str, record: &Record| {
            let text = serde_json::to_vec(record).unwrap();
            own().read(PREFIX, key, &text).unwrap_err()
        };
        let good = record(subnet);
        assert!(refuse("/hpk/overlay/peers/x", &good).contains("key"));
        assert!(refuse("/hpk/overlay/peers/10.9.0.0-24", &good).contains("within"));
        let odd = Record {
            vni: 78,
            ..good.clone()
        };
        assert!(refuse(key, &odd).contains("VNI"));
        let odd = Record {
            node_ip: "10.244.6.0".parse().unwrap(),
            ..good.clone()
        };
        assert!(refuse(key, &odd).contains("10.244.6.0"));
        let odd = Record {
            subnet6: "fd01::/64".parse().ok(),
            ..good.clone()
        };
        assert!(refuse(key, &odd).contains("fd01::/64"));
        let odd = Record {
            mac: own().record.mac,
            ..good
        };
        assert!(refuse(key, &odd).contains("hardware"));
    }
}
