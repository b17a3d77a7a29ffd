//! Addresses of devices.

use std::net::IpAddr;

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::Netlink;
use super::error::{Error, allow};

impl Netlink {
    /// Addresses of a device, but those of link scope that the kernel gives
    /// each for IPv6.
    pub async fn addresses(&self, index: u32) -> Result<Vec<IpNet>, Error> {
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
            if message.header.index == index
                && let Some(address) = read_address(&message)
                && !is_link_local(address.addr())
            {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }

    /// Gives a device an address; one it has already is fine. Without
    /// `prefix_route` the kernel adds no route to the address's network. An
    /// IPv6 address can be used at once: nobody else can have it, so it isn't
    /// looked for first (RFC 4862, 5.4), which would take a second.
    pub async fn add_address(
        &self,
        name: &str,
        address: IpNet,
        prefix_route: bool,
    ) -> Result<(), Error> {
        let index = self.index(name).await?;
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len());
        let mut flags = AddressFlags::empty();
        if !prefix_route {
            flags |= AddressFlags::Noprefixroute;
        }
        if let IpNet::V6(_) = address {
            flags |= AddressFlags::Nodad;
        }
        request
            .message_mut()
            .attributes
            .push(AddressAttribute::Flags(flags));
        let result = request.execute().await;
        let operand = format!("{address} on {name}");
        allow(
            result.map_err(Error::of("add address", operand)),
            &[libc::EEXIST],
        )
    }

    /// Takes an address from a device; one it hasn't is fine.
    pub async fn remove_address(&self, name: &str, address: IpNet) -> Result<(), Error> {
        let index = self.index(name).await?;
        let message = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len())
            .message_mut()
            .clone();
        let result = self.handle.address().del(message).execute().await;
        let operand = format!("{address} on {name}");
        allow(
            result.map_err(Error::of("remove address", operand)),
            &[libc::EADDRNOTAVAIL],
        )
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
