//! Addresses of devices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::error::Error;
use super::socket::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use super::{Change, Netlink};

impl Netlink {
    /// Addresses of a device, but those of link scope that the kernel gives
    /// each for IPv6.
    pub fn addresses(&self, index: u32) -> Result<Vec<IpNet>, Error> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut addresses = Vec::new();
        self.ask(question, NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewAddress(message) = answer
                && message.header.index == index
                && let Some(address) = read_address(&message)
                && !is_link_local(address.addr())
            {
                addresses.push(address);
            }
        })
        .map_err(Error::of("read addresses of device", index))?;
        Ok(addresses)
    }
}

/// Gives the device of that index an address; one it has already is fine.
/// Without `prefix_route` the kernel adds no route to the address's network.
/// An IPv6 address can be used at once: nobody else can have it, so it isn't
/// looked for first (RFC 4862, 5.4), which would take a second.
pub fn add(index: u32, address: IpNet, prefix_route: bool) -> Change {
    let mut message = message(index, address);
    let mut flags = AddressFlags::empty();
    if !prefix_route {
        flags |= AddressFlags::Noprefixroute;
    }
    if let IpNet::V6(_) = address {
        flags |= AddressFlags::Nodad;
    }
    message.attributes.push(AddressAttribute::Flags(flags));
    let message = RouteNetlinkMessage::NewAddress(message);
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Change::new(message, flags, "add address", address).allowing(&[libc::EEXIST])
}

/// Takes an address from the device of that index; one it hasn't is fine.
pub fn remove(index: u32, address: IpNet) -> Change {
    let message = RouteNetlinkMessage::DelAddress(message(index, address));
    Change::new(message, 0, "remove address", address).allowing(&[libc::EADDRNOTAVAIL])
}

fn message(index: u32, net: IpNet) -> AddressMessage {
    let length = net.prefix_len();
    match net.addr() {
        IpAddr::V4(address) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(address, length)
            .build(),
        IpAddr::V6(address) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(index)
            .address(address, length)
            .build(),
    }
}

/// `IFA_LOCAL` for IPv4, where `IFA_ADDRESS` may be a peer's; for IPv6 there
/// is the latter alone.
fn read_address(message: &AddressMessage) -> Option<IpNet> {
    let mut local = None;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(value) => local = Some(*value),
            AddressAttribute::Address(value) => address = Some(*value),
            _ => {}
        }
    }
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
