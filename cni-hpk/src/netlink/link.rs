//! Devices.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd as _};

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVeth, InfoVxlan,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::socket::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use super::{Change, Netlink};

/// A hardware address; written `02:00:…` in JSON.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered address that tells an IP address: for IPv4 with
    /// the prefix CNI plugins use, for IPv6 the end of it, with another.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_ipv4(address),
            IpAddr::V6(address) => {
                let [.., a, b, c, d] = address.octets();
                Self([0x0a, 0x5a, a, b, c, d])
            }
        }
    }

    pub fn of_ipv4(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x0a, 0x58, a, b, c, d])
    }

    /// A locally administered address of a station, of a number's 46 low bits.
    pub fn of_number(number: u64) -> Self {
        let [_, _, first, rest @ ..] = number.to_be_bytes();
        let [b, c, d, e, f] = rest;
        Self([first & 0xfc | 0x02, b, c, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let octets: Option<Vec<u8>> = text
            .split(':')
            .map(|part| {
                u8::from_str_radix(part, 16)
                    .ok()
                    .filter(|_| part.len() == 2)
            })
            .collect();
        octets
            .and_then(|octets| octets.try_into().ok())
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a hardware address"))
    }
}

/// What a device is, as far as we care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Bridge,
    Veth,
    Vxlan(Vxlan),
    Tap,
    Other,
}

/// What can't be changed in a VXLAN device once it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub vni: u32,
    /// UDP port it receives at.
    pub port: u16,
    pub learning: bool,
}

/// A device as observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub kind: LinkKind,
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    pub up: bool,
    /// Index of the bridge it is a port of.
    pub bridge: Option<u32>,
    /// Bridge port that talks to no other isolated port.
    pub isolated: bool,
    /// What it is for, in words.
    pub alias: String,
}

/// A veth pair to make. The host's end becomes a port of `bridge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethPair {
    pub host_name: String,
    pub host_mac: Mac,
    pub pod_name: String,
    pub pod_mac: Mac,
    pub mtu: u32,
    pub alias: String,
}

impl Netlink {
    /// The device of that name, if there is one.
    pub fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let message = LinkUnspec::new_with_name(name)
            .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
            .build();
        let mut link = None;
        let asked = self.ask(RouteNetlinkMessage::GetLink(message), 0, |answer| {
            if let RouteNetlinkMessage::NewLink(message) = answer {
                link = Some(read_link(message));
            }
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            other => other.map(|()| link).map_err(Error::of("read device", name)),
        }
    }

    /// The device's index; an error if there is none.
    pub fn index(&self, name: &str) -> Result<u32, Error> {
        match self.link(name)? {
            Some(link) => Ok(link.index),
            None => Err(Error::new(
                "find device",
                name,
                std::io::Error::from_raw_os_error(libc::ENODEV),
            )),
        }
    }

    /// All devices.
    pub fn links(&self) -> Result<Vec<Link>, Error> {
        let message = LinkMessage::default();
        let mut links = Vec::new();
        self.ask(
            RouteNetlinkMessage::GetLink(message),
            NLM_F_DUMP,
            |answer| {
                if let RouteNetlinkMessage::NewLink(message) = answer {
                    links.push(read_link(message));
                }
            },
        )
        .map_err(Error::of("read", "devices"))?;
        Ok(links)
    }

    /// Removes a device; one that isn't there is fine.
    pub fn remove_link(&self, name: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_name(name).build();
        let change = Change::new(RouteNetlinkMessage::DelLink(message), 0, "remove", name);
        self.apply([change.allowing(&[libc::ENODEV])])
    }
}

fn make(message: LinkMessage, operation: &'static str, name: &str) -> Change {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Change::new(
        RouteNetlinkMessage::NewLink(message),
        flags,
        operation,
        name,
    )
}

fn set(message: LinkMessage, operation: &'static str, name: &str) -> Change {
    Change::new(RouteNetlinkMessage::NewLink(message), 0, operation, name)
}

/// A bridge without delays; up at once. Its MTU is that of its smallest port
/// until it is set.
pub fn add_bridge(name: &str, mac: Mac) -> Change {
    let message = LinkBridge::new(name)
        .address(mac.0.to_vec())
        .forward_delay(0)
        .stp_state(BridgeStpState::Disabled)
        .mcast_snooping(false)
        .up()
        .build();
    make(message, "make bridge", name)
}

/// A VXLAN device that learns nothing, as Flannel's.
pub fn add_vxlan(name: &str, vxlan: &Vxlan, mac: Mac, mtu: u32) -> Change {
    let message = LinkVxlan::new(name, vxlan.vni)
        .port(vxlan.port)
        .learning(vxlan.learning)
        .address(mac.0.to_vec())
        .mtu(mtu)
        .up()
        .build();
    make(message, "make vxlan", name)
}

/// A veth pair whose pod end is born in `namespace` under its final name: it
/// is never seen in the bubble.
pub fn add_veth(pair: &VethPair, namespace: impl AsFd) -> Change {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(pair.pod_name.clone())
        .address(pair.pod_mac.0.to_vec())
        .mtu(pair.mtu)
        .setns_by_fd(namespace.as_fd().as_raw_fd())
        .build();
    let message = LinkMessageBuilder::<LinkVeth>::new(&pair.host_name, &pair.pod_name)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .address(pair.host_mac.0.to_vec())
        .mtu(pair.mtu)
        .build();
    make(message, "make veth", &pair.host_name)
}

/// Makes a device a port of the bridge of that index; isolated from the other
/// ports, and only then up.
pub fn join_bridge(name: &str, bridge: u32, alias: &str) -> [Change; 2] {
    let message = LinkUnspec::new_with_name(name)
        .controller(bridge)
        .alias(alias)
        .build();
    // The kernel does the port's part first, then the device's.
    let port = LinkBridgePort::new(0).name(name.to_owned()).isolated(true);
    [
        set(message, "join the bridge by", name),
        set(port.up().build(), "isolate port", name),
    ]
}

/// Says what a device is for, in words.
pub fn set_alias(name: &str, alias: &str) -> Change {
    let message = LinkUnspec::new_with_name(name).alias(alias).build();
    set(message, "set the alias of", name)
}

pub fn set_up(name: &str) -> Change {
    let message = LinkUnspec::new_with_name(name).up().build();
    set(message, "set up", name)
}

/// `mtu`: bytes.
pub fn set_mtu(name: &str, mtu: u32) -> Change {
    let message = LinkUnspec::new_with_name(name).mtu(mtu).build();
    set(message, "set the MTU of", name)
}

pub fn set_mac(name: &str, mac: Mac) -> Change {
    let message = LinkUnspec::new_with_name(name)
        .address(mac.0.to_vec())
        .build();
    set(message, "set the address of", name)
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other,
        mac: Mac::default(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        bridge: None,
        isolated: false,
        alias: String::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Controller(index) => link.bridge = Some(index),
            LinkAttribute::Address(octets) => {
                link.mac = octets.try_into().map(Mac).unwrap_or_default();
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    read_info(&mut link, info);
                }
            }
            _ => {}
        }
    }
    link
}

fn read_info(link: &mut Link, info: LinkInfo) {
    match info {
        LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
        LinkInfo::Kind(InfoKind::Tun) => link.kind = LinkKind::Tap,
        LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth,
        LinkInfo::Data(InfoData::Vxlan(infos)) => link.kind = LinkKind::Vxlan(read_vxlan(&infos)),
        LinkInfo::PortData(InfoPortData::BridgePort(infos)) => {
            link.isolated = infos.contains(&InfoBridgePort::Isolated(true));
        }
        _ => {}
    }
}

fn read_vxlan(infos: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        learning: false,
    };
    for info in infos {
        match info {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            _ => {}
        }
    }
    vxlan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_is_written_and_read_back() {
        let mac = Mac::of_ipv4(Ipv4Addr::new(10, 244, 3, 1));
        assert_eq!(mac.to_string(), "0a:58:0a:f4:03:01");
        assert_eq!(Mac::try_from(mac.to_string()), Ok(mac));
    }

    #[test]
    fn rubbish_is_no_hardware_address() {
        for text in [
            "",
            "0a:58",
            "0a:58:0a:f4:03:zz",
            "0a:58:0a:f4:03:001",
            "+a:58:0a:f4:03:01:",
        ] {
            assert!(Mac::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}
