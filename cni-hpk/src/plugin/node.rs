//! The bubble's side: bridge, settings, NAT. Looked at without a lock; changed
//! under one, after a second look.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::config::Config;
use super::error::Error;
use super::plan::{NodeStep, ObservedNode, Sysctl, plan_node, sysctls};
use crate::netlink::{Netlink, nat};

const NET: &str = "/proc/sys/net";

/// Brings the bubble's side to what `config` wants.
pub async fn ensure(netlink: &Netlink, config: &Config, data_dir: &Path) -> Result<(), Error> {
    if missing(netlink, config).await?.is_empty() {
        return Ok(());
    }
    let _lock = lock(data_dir)?;
    for step in missing(netlink, config).await? {
        apply(netlink, config, &step).await?;
    }
    Ok(())
}

/// What the bubble's side lacks.
pub async fn missing(netlink: &Netlink, config: &Config) -> Result<Vec<NodeStep>, Error> {
    let observed = observe(netlink, &config.bridge).await?;
    plan_node(config, &observed).map_err(|conflict| Error::Invalid(conflict.to_string()))
}

async fn observe(netlink: &Netlink, bridge: &str) -> Result<ObservedNode, Error> {
    let link = netlink.link(bridge).await?;
    let bridge_addresses = match &link {
        Some(link) => netlink.addresses(link.index).await?,
        None => Vec::new(),
    };
    let mut values = Vec::new();
    for sysctl in sysctls(bridge) {
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
        nat: nat::observe(bridge, None)?.comments,
    })
}

async fn apply(netlink: &Netlink, config: &Config, step: &NodeStep) -> Result<(), Error> {
    let bridge = config.bridge.as_str();
    match step {
        NodeStep::AddBridge { mac, mtu } => netlink.add_bridge(bridge, *mac, *mtu).await?,
        NodeStep::SetMtu(mtu) => netlink.set_mtu(bridge, *mtu).await?,
        NodeStep::SetMac(mac) => netlink.set_mac(bridge, *mac).await?,
        NodeStep::SetUp => netlink.set_up(bridge).await?,
        NodeStep::AddAddress(address) => netlink.add_address(bridge, *address, true).await?,
        NodeStep::RemoveAddress(address) => netlink.remove_address(bridge, *address).await?,
        NodeStep::SetSysctl(sysctl) => set_sysctl(sysctl)?,
        NodeStep::ReplaceNat(rules) => nat::replace(nat::Backend::Nftables, bridge, rules)?,
    }
    Ok(())
}

/// Sets one that pods can't do without, or tries to set another: where
/// /proc/sys is read-only, the bubble's own set-up has had its chance.
fn set_sysctl(sysctl: &Sysctl) -> Result<(), Error> {
    let path = sysctl_path(sysctl);
    match std::fs::write(&path, sysctl.value) {
        Err(source) if sysctl.required => Err(Error::Sysctl {
            path,
            value: sysctl.value.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn sysctl_path(sysctl: &Sysctl) -> PathBuf {
    Path::new(NET).join(&sysctl.path)
}

/// Held while the bubble's side is changed. `dataDir` is local to the node.
fn lock(data_dir: &Path) -> Result<File, Error> {
    let path = data_dir.join("lock");
    let open = || {
        std::fs::create_dir_all(data_dir)?;
        let file = File::options().create(true).append(true).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|source| Error::File {
        operation: "lock",
        path: path.clone(),
        source,
    })
}
