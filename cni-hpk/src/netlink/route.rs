//! Routes of the main table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::socket::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use super::{Change, Netlink};

/// A unicast route of the main table over one device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    pub destination: IpNet,
    pub gateway: Option<IpAddr>,
    /// The gateway is taken to be on the device, whatever its addresses.
    pub onlink: bool,
    /// Smaller than the device's, bytes.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// Routes of the main table over a device, of both families, other than
    /// those the kernel made itself.
    pub fn routes(&self, index: u32) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for question in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let question = RouteNetlinkMessage::GetRoute(question);
            self.ask(question, NLM_F_DUMP, |answer| {
                if let RouteNetlinkMessage::NewRoute(message) = answer {
                    routes.extend(read_route(&message, index));
                }
            })
            .map_err(Error::of("read routes of device", index))?;
        }
        Ok(routes)
    }
}

/// Sets a route over the device of that index, replacing one to the same
/// destination.
pub fn set(index: u32, route: &Route) -> Change {
    let message = RouteNetlinkMessage::NewRoute(route_message(route, index));
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    Change::new(message, flags, "set route to", route.destination)
}

/// Removes a route; one that isn't there is fine.
pub fn remove(index: u32, route: &Route) -> Change {
    let message = RouteNetlinkMessage::DelRoute(route_message(route, index));
    Change::new(message, 0, "remove route to", route.destination).allowing(&[libc::ESRCH])
}

fn route_message(route: &Route, index: u32) -> RouteMessage {
    let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(index)
        .build();
    let header = &mut message.header;
    header.destination_prefix_length = route.destination.prefix_len();
    header.address_family = match route.destination {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(address(
        route.destination.addr(),
    )));
    match route.gateway {
        Some(gateway) => attributes.push(RouteAttribute::Gateway(address(gateway))),
        None => message.header.scope = RouteScope::Link,
    }
    if let Some(mtu) = route.mtu {
        let metrics = vec![RouteMetric::Mtu(mtu)];
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

fn read_route(message: &RouteMessage, index: u32) -> Option<Route> {
    let header = &message.header;
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let wanted = header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && header.protocol != RouteProtocol::Kernel;
    if !wanted {
        return None;
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let mut destination = unspecified;
    let mut gateway = None;
    let mut device = None;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(value) => destination = address(value)?,
            RouteAttribute::Gateway(value) => gateway = address(value),
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (device == Some(index)).then_some(Route {
        destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
        gateway,
        onlink: header.flags.contains(RouteFlags::Onlink),
        mtu,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, gateway: Option<&str>) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            gateway: gateway.map(|text| text.parse().unwrap()),
            onlink: gateway.is_some(),
            mtu: gateway.map(|_| 1400),
        }
    }

    #[test]
    fn a_route_is_written_and_read_back_in_both_families() {
        for route in [
            route("10.244.5.0/24", Some("10.244.5.0")),
            route("10.244.3.1/32", None),
            route("0.0.0.0/0", Some("10.244.3.1")),
            route("fd00:5::/64", Some("fd00:5::")),
            route("fd00:3::1/128", None),
            route("::/0", Some("fd00:3::1")),
        ] {
            assert_eq!(
                read_route(&route_message(&route, 7), 7).as_ref(),
                Some(&route)
            );
        }
    }

    #[test]
    fn a_route_over_another_device_is_not_read() {
        let route = route("fd00:5::/64", Some("fd00:5::"));
        assert_eq!(read_route(&route_message(&route, 7), 8), None);
    }
}
