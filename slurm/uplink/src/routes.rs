//! The host's IPv4 routes, from /proc/net/route, and networks that keep out of their way.

use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;

use crate::Error;

/// The uplink's networks that are tried in turn: none must be the host's own.
const UPLINK_NETWORKS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 0, 2, 0),
    Ipv4Addr::new(192, 168, 213, 0),
    Ipv4Addr::new(172, 31, 213, 0),
    Ipv4Addr::new(100, 127, 213, 0),
];

/// This host's.
pub fn of_this_host() -> Result<Vec<Ipv4Net>, Error> {
    let path = Path::new("/proc/net/route");
    match std::fs::read_to_string(path) {
        Ok(table) => Ok(parse(&table)),
        Err(source) => Err(Error::Routes {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The destinations of the table's routes; lines that are no routes are left out.
fn parse(table: &str) -> Vec<Ipv4Net> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let destination = hex(fields.nth(1)?)?;
            let mask = hex(fields.nth(5)?)?;
            Ipv4Net::with_netmask(destination, mask).ok()
        })
        .collect()
}

/// The kernel prints addresses as numbers in the machine's byte order.
fn hex(text: &str) -> Option<Ipv4Addr> {
    let number = u32::from_str_radix(text, 16).ok()?;
    Some(Ipv4Addr::from(number.to_ne_bytes()))
}

/// A /24 for the uplink that is none of the host's own networks.
pub fn uplink_network(routes: &[Ipv4Net]) -> Option<Ipv4Net> {
    first_free(UPLINK_NETWORKS, routes)
}

/// The first of these /24s that is none of the host's own networks.
pub fn first_free(
    candidates: impl IntoIterator<Item = Ipv4Addr>,
    routes: &[Ipv4Net],
) -> Option<Ipv4Net> {
    candidates
        .into_iter()
        .filter_map(|address| Ipv4Net::new(address, 24).ok())
        .find(|net| {
            routes.iter().all(|route| {
                // A route to a large network, as a site's 10.0.0.0/8, doesn't forbid a part of it.
                route.prefix_len() < 16 || !(route.contains(net) || net.contains(route))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\tFE00630A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth0\t0000630A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let nets: Vec<_> = parse(table).iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["0.0.0.0/0", "10.99.0.0/24"]);
    }

    #[test]
    fn the_uplink_avoids_the_hosts_networks() {
        let routes = ["0.0.0.0/0", "10.0.0.0/16"].map(|net| net.parse().unwrap());
        assert_eq!(
            uplink_network(&routes).unwrap().to_string(),
            "192.168.213.0/24"
        );
        assert_eq!(uplink_network(&[]).unwrap().to_string(), "10.0.2.0/24");
    }
}
