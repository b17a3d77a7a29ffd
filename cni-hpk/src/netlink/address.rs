//! Addresses, routes and neighbours. IPv4 only.

use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt as _;
use ipnet::Ipv4Net;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope, RouteType,
};

use super::error::{Error, allow};
use super::{Mac, Netlink};

/// A unicast route of the main table over one device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    pub destination: Ipv4Net,
    pub gateway: Option<Ipv4Addr>,
    /// The gateway is taken to be on the device, whatever its addresses.
    pub onlink: bool,
}

/// Where frames for a hardware address go (VXLAN), or which hardware address
/// an IP address has.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Neighbour {
    /// An ARP entry.
    Arp { address: Ipv4Addr, mac: Mac },
    /// A VXLAN forwarding entry. `port` is always explicit here.
    Fdb { mac: Mac, host: Ipv4Addr, port: u16 },
}

impl Netlink {
    /// IPv4 addresses of a device.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Ipv4Net>, Error> {
        let mut request = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute();
        let mut addresses = Vec::new();
        while let Some(message) = request
            .try_next()
            .await
            .map_err(Error::of("read addresses of device", index))?
        {
            if message.header.family != AddressFamily::Inet || message.header.index != index {
                continue;
            }
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                    _ => None,
                });
            if let Some(local) = local
                && let Ok(address) = Ipv4Net::new(local, message.header.prefix_len)
            {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }

    /// Gives a device an address; one it has already is fine. Without
    /// `prefix_route` the kernel adds no route to the address's network.
    pub async fn add_address(
        &self,
        name: &str,
        address: Ipv4Net,
        prefix_route: bool,
    ) -> Result<(), Error> {
        let index = self.index(name).await?;
        let mut request =
            self.handle
                .address()
                .add(index, IpAddr::V4(address.addr()), address.prefix_len());
        if !prefix_route {
            request
                .message_mut()
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
        }
        let result = request.execute().await;
        let operand = format!("{address} on {name}");
        allow(
            result.map_err(Error::of("add address", operand)),
            &[libc::EEXIST],
        )
    }

    /// Takes an address from a device; one it hasn't is fine.
    pub async fn remove_address(&self, name: &str, address: Ipv4Net) -> Result<(), Error> {
        let index = self.index(name).await?;
        let message = self
            .handle
            .address()
            .add(index, IpAddr::V4(address.addr()), address.prefix_len())
            .message_mut()
            .clone();
        let result = self.handle.address().del(message).execute().await;
        let operand = format!("{address} on {name}");
        allow(
            result.map_err(Error::of("remove address", operand)),
            &[libc::EADDRNOTAVAIL],
        )
    }

    /// Routes of the main table over a device, other than those the kernel
    /// made itself.
    pub async fn routes(&self, index: u32) -> Result<Vec<Route>, Error> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut request = self.handle.route().get(message).execute();
        let mut routes = Vec::new();
        while let Some(message) = request
            .try_next()
            .await
            .map_err(Error::of("read routes of device", index))?
        {
            if let Some(route) = read_route(&message, index) {
                routes.push(route);
            }
        }
        Ok(routes)
    }

    /// Sets a route over a device, replacing one to the same destination.
    pub async fn set_route(&self, name: &str, route: &Route) -> Result<(), Error> {
        let index = self.index(name).await?;
        let operand = format!("{} over {name}", route.destination);
        let request = self
            .handle
            .route()
            .add(route_message(route, index))
            .replace();
        request
            .execute()
            .await
            .map_err(Error::of("set route", operand))
    }

    /// Removes a route; one that isn't there is fine.
    pub async fn remove_route(&self, name: &str, route: &Route) -> Result<(), Error> {
        let index = self.index(name).await?;
        let operand = format!("{} over {name}", route.destination);
        let request = self.handle.route().del(route_message(route, index));
        let result = request.execute().await;
        allow(
            result.map_err(Error::of("remove route", operand)),
            &[libc::ESRCH],
        )
    }

    /// Permanent neighbours of a device: ARP, and forwarding if it is a VXLAN
    /// device whose own UDP port is `default_port`.
    pub async fn neighbours(&self, index: u32, default_port: u16) -> Result<Vec<Neighbour>, Error> {
        let mut neighbours = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Bridge] {
            let mut request = self
                .handle
                .neighbours()
                .get()
                .set_address_family(family)
                .execute();
            while let Some(message) = request
                .try_next()
                .await
                .map_err(Error::of("read neighbours of device", index))?
            {
                if message.header.ifindex == index
                    && message.header.state == NeighbourState::Permanent
                    && let Some(neighbour) = read_neighbour(&message, default_port)
                {
                    neighbours.push(neighbour);
                }
            }
        }
        Ok(neighbours)
    }

    /// Sets a permanent neighbour, replacing one for the same key.
    pub async fn set_neighbour(&self, name: &str, neighbour: &Neighbour) -> Result<(), Error> {
        let index = self.index(name).await?;
        let mut request = self
            .handle
            .neighbours()
            .add(index, IpAddr::V4(neighbour.destination()))
            .replace();
        *request.message_mut() = neighbour_message(neighbour, index);
        request
            .execute()
            .await
            .map_err(Error::of("set neighbour", neighbour))
    }

    /// Removes a neighbour; one that isn't there is fine.
    pub async fn remove_neighbour(&self, name: &str, neighbour: &Neighbour) -> Result<(), Error> {
        let index = self.index(name).await?;
        let message = neighbour_message(neighbour, index);
        let result = self.handle.neighbours().del(message).execute().await;
        allow(
            result.map_err(Error::of("remove neighbour", neighbour)),
            &[libc::ENOENT],
        )
    }
}

impl Neighbour {
    fn destination(&self) -> Ipv4Addr {
        match self {
            Self::Arp { address, .. } => *address,
            Self::Fdb { host, .. } => *host,
        }
    }
}

impl std::fmt::Display for Neighbour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Arp { address, mac } => write!(f, "{address} lladdr {mac}"),
            Self::Fdb { mac, host, port } => write!(f, "{mac} dst {host} port {port}"),
        }
    }
}

fn route_message(route: &Route, index: u32) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination.addr(), route.destination.prefix_len())
        .output_interface(index);
    match route.gateway {
        Some(gateway) => builder = builder.gateway(gateway),
        None => builder = builder.scope(RouteScope::Link),
    }
    if route.onlink {
        builder = builder.onlink();
    }
    builder.build()
}

fn read_route(message: &RouteMessage, index: u32) -> Option<Route> {
    let header = &message.header;
    let wanted = header.address_family == AddressFamily::Inet
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && header.protocol != rtnetlink::packet_route::route::RouteProtocol::Kernel;
    if !wanted {
        return None;
    }
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut gateway = None;
    let mut device = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    (device == Some(index)).then_some(Route {
        destination: Ipv4Net::new(destination, header.destination_prefix_length).ok()?,
        gateway,
        onlink: header.flags.contains(RouteFlags::Onlink),
    })
}

fn neighbour_message(neighbour: &Neighbour, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unspec;
    let destination = NeighbourAddress::Inet(neighbour.destination());
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    let mac = match neighbour {
        Neighbour::Arp { mac, .. } => {
            message.header.family = AddressFamily::Inet;
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
            NeighbourAttribute::Destination(NeighbourAddress::Inet(value)) => {
                address = Some(*value);
            }
            // Entries of the bridge family come with the address undecoded.
            NeighbourAttribute::Destination(NeighbourAddress::Other(octets)) => {
                let octets: Option<[u8; 4]> = octets.as_slice().try_into().ok();
                address = octets.map(Ipv4Addr::from);
            }
            NeighbourAttribute::LinkLayerAddress(octets) => {
                mac = octets.as_slice().try_into().ok().map(Mac);
            }
            NeighbourAttribute::Port(value) => port = *value,
            _ => {}
        }
    }
    match message.header.family {
        AddressFamily::Inet => Some(Neighbour::Arp {
            address: address?,
            mac: mac?,
        }),
        _ => Some(Neighbour::Fdb {
            mac: mac?,
            host: address?,
            port,
        }),
    }
}
