//! The bubble's side: bridge, settings, NAT. Looked at without a lock; changed
//! under one, after a second look.

use std::io;
use std::path::{Path, PathBuf};

use super::config::Config;
use super::error::Error;
use super::locks::{self, Scope};
use super::plan::{
    Conflict, IPV6_FORWARDING, NodeStep, ObservedNode, Sysctl, masquerades, plan_node, sysctls,
};
use crate::netlink::{Netlink, address, link, nat};

const NET: &str = "/proc/sys/net";

/// Brings the bubble's side to what `config` wants, and returns the bridge's
/// index. `now` reads it again, once nobody else can change the bubble's side.
/// `restarted` is run before the bridge is made: nothing of what is on record
/// can be alive then.
pub fn ensure(
    netlink: &Netlink,
    config: &Config,
    data_dir: &Path,
    now: impl FnOnce() -> Result<Config, Error>,
    restarted: impl FnOnce(),
) -> Result<u32, Error> {
    let observed = observe(netlink, config)?;
    if let (Some(bridge), true) = (&observed.bridge, lacks(config, &observed)?.is_empty()) {
        return Ok(bridge.index);
    }
    let _lock = locks::lock(data_dir, Scope::Node)?;
    let config = &now()?;
    let steps = missing(netlink, config)?;
    if matches!(steps.first(), Some(NodeStep::AddBridge(_))) {
        restarted();
    }
    for step in steps {
        apply(netlink, config, &step)?;
    }
    Ok(netlink.index(&config.bridge)?)
}

/// What the bubble's side lacks.
pub fn missing(netlink: &Netlink, config: &Config) -> Result<Vec<NodeStep>, Error> {
    lacks(config, &observe(netlink, config)?)
}

fn lacks(config: &Config, observed: &ObservedNode) -> Result<Vec<NodeStep>, Error> {
    plan_node(config, observed).map_err(|conflict| match conflict {
        Conflict::NoNat => Error::NoNat,
        conflict => Error::Invalid(conflict.to_string()),
    })
}

fn observe(netlink: &Netlink, config: &Config) -> Result<ObservedNode, Error> {
    let bridge = config.bridge.as_str();
    let link = netlink.link(bridge)?;
    let bridge_addresses = match &link {
        Some(link) => netlink.addresses(link.index)?,
        None => Vec::new(),
    };
    let mut values = Vec::new();
    for sysctl in sysctls(config) {
        let path = sysctl_path(&sysctl);
        match std::fs::read_to_string(&path) {
            Ok(value) => values.push(Some(value.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => values.push(None),
            Err(source) => {
                return Err(Error::File {
                    operation: "read",
                    path,
                    source,
                });
            }
        }
    }
    Ok(ObservedNode {
        bridge: link,
        bridge_addresses,
        sysctls: values,
        nat: nat::observe(bridge, config.nat, &masquerades(config))?,
    })
}

fn apply(netlink: &Netlink, config: &Config, step: &NodeStep) -> Result<(), Error> {
    let bridge = config.bridge.as_str();
    let change = match step {
        NodeStep::SetSysctl(sysctl) => return set_sysctl(sysctl),
        NodeStep::ReplaceNat(backend, rules) => return Ok(nat::replace(*backend, bridge, rules)?),
        NodeStep::AddBridge(mac) => link::add_bridge(bridge, *mac),
        NodeStep::SetMtu(mtu) => link::set_mtu(bridge, *mtu),
        NodeStep::SetMac(mac) => link::set_mac(bridge, *mac),
        NodeStep::SetAlias(alias) => link::set_alias(bridge, alias),
        NodeStep::SetUp => link::set_up(bridge),
        NodeStep::AddAddress(address) => address::add(netlink.index(bridge)?, *address, true),
        NodeStep::RemoveAddress(address) => address::remove(netlink.index(bridge)?, *address),
    };
    Ok(netlink.apply([change])?)
}

/// Sets one that pods can't do without, or tries to set another: where
/// /proc/sys is read-only, the bubble's own set-up has had its chance.
fn set_sysctl(sysctl: &Sysctl) -> Result<(), Error> {
    let path = sysctl_path(sysctl);
    if sysctl.path == IPV6_FORWARDING {
        keep_advertised_routes()?;
    }
    match std::fs::write(&path, sysctl.value) {
        Err(source) if sysctl.required => Err(Error::Sysctl {
            path,
            value: sysctl.value.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// A host that begins to forward forgets the routes it has from router
/// advertisements (the uplink's may be such), unless 2 stands there.
fn keep_advertised_routes() -> Result<(), Error> {
    let folder = Path::new(NET).join("ipv6/conf");
    let fail = |source| Error::File {
        operation: "list",
        path: folder.clone(),
        source,
    };
    for entry in std::fs::read_dir(&folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path().join("accept_ra");
        // A device may go meanwhile, and one whose setting can't be changed
        // is no worse off than before.
        if std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
            let _ = std::fs::write(&path, "2");
        }
    }
    Ok(())
}

fn sysctl_path(sysctl: &Sysctl) -> PathBuf {
    Path::new(NET).join(&sysctl.path)
}
