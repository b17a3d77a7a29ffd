//! Masquerading of what leaves the pod network, by nftables, or by iptables
//! where the kernel has no nftables for us.
//!
//! A bridge's rules are a chain of its name, written whole or not at all. Each
//! rule carries what it does as a comment, and that is what is compared, so a
//! rule is never there twice. No rule is an attachment's own: none outlives it.
//!
//! Layout:
//! - [`nft`]: the tables `ip hpk` and `ip6 hpk`, over nfnetlink
//! - [`message`]: its messages
//! - [`iptables`]: the chain `HPK-BRIDGE` of the table `nat`

pub mod iptables;
pub mod message;
pub mod nft;

use std::fmt;

use ipnet::IpNet;
use serde::Deserialize;

use super::Error;

/// What masquerades. In a configuration: `nftables` or `iptables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    Nftables,
    Iptables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    pub fn of(net: IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::Ipv4,
            IpNet::V6(_) => Self::Ipv6,
        }
    }

    /// All multicast groups.
    pub const fn multicast(self) -> IpNet {
        use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
        match self {
            Self::Ipv4 => IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
            Self::Ipv6 => {
                IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8)
            }
        }
    }
}

/// Packets from `subnet` that leave `networks` take the address of the device
/// they leave by. Multicast stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Pods of this bubble.
    pub subnet: IpNet,
    /// All pods of that family; among them sources are kept.
    pub networks: Vec<IpNet>,
}

impl Masquerade {
    fn family(&self) -> Family {
        Family::of(self.subnet)
    }
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hpk: {} leaving", self.subnet)?;
        self.networks.iter().try_for_each(|net| write!(f, " {net}"))
    }
}

/// What there is in a bridge's chains.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// What to write with; `None` where nothing can masquerade.
    pub backend: Option<Backend>,
    /// The rules' comments: those of IPv4, in order, then those of IPv6.
    pub comments: Vec<String>,
}

/// Looks at the chains of `bridge` in the calling thread's network namespace,
/// with `wanted` or, if that is left open, with what works here. Where nothing
/// is to be written, and nothing is there, that isn't tried: a transaction
/// that isn't ended costs the kernel a grace period (synchronize_rcu), with
/// everybody else's rules locked.
pub fn observe(
    bridge: &str,
    wanted: Option<Backend>,
    rules: &[Masquerade],
) -> Result<Observed, Error> {
    let backend = match wanted {
        Some(backend) => Some(backend),
        None => match nft::read(bridge) {
            Ok(comments) if !comments.is_empty() || rules.is_empty() => {
                let backend = Some(Backend::Nftables);
                return Ok(Observed { backend, comments });
            }
            _ => find(),
        },
    };
    let comments = match backend {
        Some(Backend::Nftables) => nft::read(bridge)?,
        Some(Backend::Iptables) => iptables::read(bridge)?,
        None => Vec::new(),
    };
    Ok(Observed { backend, comments })
}

/// nftables goes first: iptables is mostly a front of it, and costs a process.
fn find() -> Option<Backend> {
    if nft::probe().is_ok() {
        return Some(Backend::Nftables);
    }
    iptables::is_usable().then_some(Backend::Iptables)
}

/// Makes `rules` the only ones in the chains of `bridge`.
pub fn replace(backend: Backend, bridge: &str, rules: &[Masquerade]) -> Result<(), Error> {
    match backend {
        Backend::Nftables => nft::replace(bridge, rules),
        Backend::Iptables => iptables::replace(bridge, rules),
    }
}
