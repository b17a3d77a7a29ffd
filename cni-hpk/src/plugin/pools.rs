//! Pools of addresses, in the words of host-local's `ranges`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;

/// A pool as a configuration writes it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolKeys {
    pub subnet: Option<String>,
    pub range_start: Option<String>,
    pub range_end: Option<String>,
    pub gateway: Option<String>,
}

/// Addresses to give away, `first` to `last`, but for the gateway's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub subnet: IpNet,
    pub gateway: IpAddr,
    pub first: IpAddr,
    pub last: IpAddr,
}

/// An attachment gets one address of one of these.
pub type RangeSet = Vec<Pool>;

impl Pool {
    /// A whole subnet; its first host address is the gateway's.
    pub fn of(subnet: IpNet) -> Result<Self, String> {
        let keys = PoolKeys {
            subnet: Some(subnet.to_string()),
            ..PoolKeys::default()
        };
        Self::read(&keys)
    }

    /// Reads a pool; the error names the value that is wrong.
    pub fn read(keys: &PoolKeys) -> Result<Self, String> {
        let text = keys.subnet.as_deref().ok_or("a range has no subnet")?;
        let subnet: IpNet = text
            .parse()
            .map_err(|_| format!("subnet {text:?} is not a network"))?;
        if subnet.trunc() != subnet {
            return Err(format!(
                "subnet {text:?} has host bits set: {} is meant?",
                subnet.trunc()
            ));
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(format!(
                "subnet {text:?} is too small for a gateway and pods"
            ));
        }
        let inside = |key: &str, text: &Option<String>, default: IpAddr| match text {
            None => Ok(default),
            Some(text) => text
                .parse::<IpAddr>()
                .ok()
                .filter(|address| subnet.contains(address))
                .ok_or_else(|| format!("{key} {text:?} is not an address of {subnet}")),
        };
        let first_host = next(subnet.network());
        let last_host = match subnet {
            IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from(u32::from(net.broadcast()) - 1)),
            IpNet::V6(net) => IpAddr::V6(net.broadcast()),
        };
        let pool = Self {
            subnet,
            gateway: inside("gateway", &keys.gateway, first_host)?,
            first: inside("rangeStart", &keys.range_start, first_host)?,
            last: inside("rangeEnd", &keys.range_end, last_host)?,
        };
        if pool.first > pool.last {
            return Err(format!(
                "rangeStart {} comes after rangeEnd {}",
                pool.first, pool.last
            ));
        }
        Ok(pool)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.first.is_ipv4() == address.is_ipv4() && (self.first..=self.last).contains(&address)
    }

    /// How many addresses there are to give away.
    pub fn size(&self) -> u128 {
        let span = number(self.last) - number(self.first);
        let all = span.saturating_add(1);
        all - u128::from(self.contains(self.gateway))
    }

    /// The gateway with its subnet's prefix, as the bridge has it.
    pub fn gateway_net(&self) -> IpNet {
        IpNet::new(self.gateway, self.subnet.prefix_len()).unwrap_or(self.subnet)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }
}

/// Refuses sets that could give the same address twice.
pub fn check(sets: &[RangeSet]) -> Result<(), String> {
    for (index, set) in sets.iter().enumerate() {
        if set.is_empty() {
            return Err(format!("range set {index} is empty"));
        }
        let later = sets[index + 1..].iter().flatten();
        for (one, other) in later.flat_map(|other| set.iter().map(move |one| (one, other))) {
            if one.overlaps(other) {
                return Err(format!(
                    "range {}-{} overlaps {}-{}",
                    one.first, one.last, other.first, other.last
                ));
            }
        }
    }
    Ok(())
}

/// An address as a number, to count with.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The address after; the first of all after the last.
pub fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address).wrapping_add(1)).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address).wrapping_add(1)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(subnet: &str, start: &str, end: &str) -> Result<Pool, String> {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Pool::read(&PoolKeys {
            subnet: text(subnet),
            range_start: text(start),
            range_end: text(end),
            gateway: None,
        })
    }

    #[test]
    fn a_subnets_ends_are_not_given_away() {
        let v4 = pool("10.1.0.0/24", "", "").unwrap();
        assert_eq!(v4.gateway.to_string(), "10.1.0.1");
        assert_eq!(v4.last.to_string(), "10.1.0.254");
        assert_eq!(v4.size(), 253);
        let v6 = pool("fd00::/64", "", "").unwrap();
        assert_eq!(v6.first.to_string(), "fd00::1");
        assert_eq!(v6.last.to_string(), "fd00::ffff:ffff:ffff:ffff");
        assert_eq!(pool("::/0", "", "").unwrap().size(), u128::MAX - 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (subnet, start, end, word) in [
            ("", "", "", "no subnet"),
            ("10.1/16", "", "", "10.1/16"),
            ("10.1.0.5/24", "", "", "10.1.0.5/24"),
            ("10.1.0.0/31", "", "", "10.1.0.0/31"),
            ("fd00::/127", "", "", "fd00::/127"),
            ("10.1.0.0/24", "10.2.0.1", "", "10.2.0.1"),
            ("10.1.0.0/24", "fd00::1", "", "fd00::1"),
            ("10.1.0.0/24", "10.1.0.9", "10.1.0.4", "10.1.0.9"),
        ] {
            let error = pool(subnet, start, end).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn sets_that_overlap_are_refused() {
        let one = pool("10.1.0.0/24", "", "10.1.0.99").unwrap();
        let other = pool("10.1.0.0/24", "10.1.0.50", "").unwrap();
        let apart = pool("10.1.0.0/24", "10.1.0.100", "").unwrap();
        assert!(check(&[vec![one.clone()], vec![other]]).is_err());
        assert_eq!(check(&[vec![one.clone()], vec![apart]]), Ok(()));
        assert!(check(&[vec![one], vec![]]).is_err());
    }
}
