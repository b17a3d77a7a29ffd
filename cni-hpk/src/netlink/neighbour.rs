//! Permanent neighbours: which hardware address an IP address has, and where
//! a VXLAN device sends frames for a hardware address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::Error;
use super::socket::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use super::{Change, Mac, Netlink};

/// An entry that doesn't age.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Neighbour {
    /// Of ARP, or for an IPv6 address of ND.
    Ip { address: IpAddr, mac: Mac },
    /// A VXLAN forwarding entry. `port` is always explicit here.
    Fdb { mac: Mac, host: IpAddr, port: u16 },
}

impl Netlink {
    /// Permanent neighbours of a device: of ARP and ND, and forwarding if it
    /// is a VXLAN device whose own UDP port is `default_port`.
    pub fn neighbours(&self, index: u32, default_port: u16) -> Result<Vec<Neighbour>, Error> {
        let mut neighbours = Vec::new();
        for family in [
            AddressFamily::Inet,
            AddressFamily::Inet6,
            AddressFamily::Bridge,
        ] {
            let mut question = NeighbourMessage::default();
            question.header.family = family;
            let question = RouteNetlinkMessage::GetNeighbour(question);
            self.ask(question, NLM_F_DUMP, |answer| {
                if let RouteNetlinkMessage::NewNeighbour(message) = answer
                    && message.header.ifindex == index
                    && message.header.state == NeighbourState::Permanent
                {
                    neighbours.extend(read_neighbour(&message, default_port));
                }
            })
            .map_err(Error::of("read neighbours of device", index))?;
        }
        Ok(neighbours)
    }
}

/// Sets a permanent neighbour of the device of that index, replacing one for
/// the same key.
pub fn set(index: u32, neighbour: &Neighbour) -> Change {
    let message = RouteNetlinkMessage::NewNeighbour(neighbour_message(neighbour, index));
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    Change::new(message, flags, "set neighbour", neighbour)
}

/// Removes a neighbour; one that isn't there is fine.
pub fn remove(index: u32, neighbour: &Neighbour) -> Change {
    let message = RouteNetlinkMessage::DelNeighbour(neighbour_message(neighbour, index));
    Change::new(message, 0, "remove neighbour", neighbour).allowing(&[libc::ENOENT])
}

impl Neighbour {
    fn destination(&self) -> IpAddr {
        match self {
            Self::Ip { address, .. } => *address,
            Self::Fdb { host, .. } => *host,
        }
    }
}

impl std::fmt::Display for Neighbour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip { address, mac } => write!(f, "{address} lladdr {mac}"),
            Self::Fdb { mac, host, port } => write!(f, "{mac} dst {host} port {port}"),
        }
    }
}

fn neighbour_message(neighbour: &Neighbour, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unspec;
    let (destination, family) = match neighbour.destination() {
        IpAddr::V4(address) => (NeighbourAddress::Inet(address), AddressFamily::Inet),
        IpAddr::V6(address) => (NeighbourAddress::Inet6(address), AddressFamily::Inet6),
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    let mac = match neighbour {
        Neighbour::Ip { mac, .. } => {
            message.header.family = family;
            mac
        }
        Neighbour::Fdb { mac, port, .. } => {
            message.header.family = AddressFamily::Bridge;
            message.header.flags = NeighbourFlags::Own;
            message.attributes.push(NeighbourAttribute::Port(*port));
            mac
        }
    };
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn read_neighbour(message: &NeighbourMessage, default_port: u16) -> Option<Neighbour> {
    let mut address = None;
    let mut mac = None;
    // The kernel leaves the port out where it is the device's own.
    let mut port = default_port;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(value) => address = read_destination(value),
            NeighbourAttribute::LinkLayerAddress(octets) => {
                mac = octets.as_slice().try_into().ok().map(Mac);
            }
            NeighbourAttribute::Port(value) => port = *value,
            _ => {}
        }
    }
    let (address, mac) = (address?, mac?);
    Some(match message.header.family {
        AddressFamily::Inet | AddressFamily::Inet6 => Neighbour::Ip { address, mac },
        _ => Neighbour::Fdb {
            mac,
            host: address,
            port,
        },
    })
}

/// Entries of the bridge family come with the address undecoded.
fn read_destination(value: &NeighbourAddress) -> Option<IpAddr> {
    match value {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(octets) => {
            let v4 = <[u8; 4]>::try_from(octets.as_slice()).map(|it| Ipv4Addr::from(it).into());
            let v6 = <[u8; 16]>::try_from(octets.as_slice()).map(|it| Ipv6Addr::from(it).into());
            v4.or(v6).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_written_and_read_back_in_both_families() {
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        for address in ["10.244.5.0", "fd00:5::"] {
            let address: IpAddr = address.parse().unwrap();
            for neighbour in [
                Neighbour::Ip { address, mac },
                Neighbour::Fdb {
                    mac,
                    host: address,
                    port: 4444,
                },
            ] {
                let message = neighbour_message(&neighbour, 7);
                assert_eq!(read_neighbour(&message, 8472), Some(neighbour));
            }
        }
    }
}
