//! The cluster's networks beside the host's routes.

use anyhow::{Result, bail};
use ipnet::Ipv4Net;

use crate::settings::Network;

/// The pods' and Services' networks must not be ones that the host reaches by a route of its own.
pub fn check(network: &Network, routes: &[Ipv4Net]) -> Result<()> {
    for route in routes {
        for (variable, net) in [
            ("HPK_POD_CIDR", network.pods),
            ("HPK_SERVICE_CIDR", network.services),
        ] {
            if route.prefix_len() > 0 && (route.contains(&net) || net.contains(route)) {
                bail!(
                    "{net} overlaps this host's route to {route}: choose another network in {variable}"
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_the_host_has_a_route_to_is_refused() {
        let network = Network {
            pods: "10.244.0.0/16".parse().unwrap(),
            services: "10.43.0.0/16".parse().unwrap(),
            domain: "cluster.local".into(),
        };
        let routes = |net: &str| ["0.0.0.0/0", net].map(|net| net.parse().unwrap());
        check(&network, &routes("10.99.0.0/24")).unwrap();
        let error = check(&network, &routes("10.43.7.0/24")).unwrap_err();
        assert!(error.to_string().contains("HPK_SERVICE_CIDR"), "{error}");
    }
}
