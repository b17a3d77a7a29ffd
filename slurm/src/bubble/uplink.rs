//! The bubble's end of the uplink.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::order::until;
use super::process::Supervisor;
use crate::settings::UPLINK;

/// The uplink's address in the bubble, once it has one.
pub fn address() -> Result<Ipv4Addr> {
    let found = nix::ifaddrs::getifaddrs()
        .context("listing the interfaces")?
        .filter(|interface| interface.interface_name == UPLINK)
        .find_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
    match found {
        Some(address) => Ok(address),
        None => bail!("{UPLINK} has no address yet"),
    }
}

/// How long a new uplink is waited for.
const NEW: Duration = Duration::from_secs(120);

/// Resets the TCP connections that went through an uplink that has ended: a daemon that only
/// listens on one (a watch) would wait on it for minutes. Kernels without SOCK_DESTROY refuse,
/// which costs those minutes.
pub async fn close_connections(supervisor: Supervisor) {
    let Ok(address) = until(NEW, "the new uplink", || async { address() }).await else {
        return; // the host sees that it has ended too
    };
    let command = [
        "ss",
        "--kill",
        "--no-header",
        "--tcp",
        "src",
        &address.to_string(),
    ]
    .map(str::to_owned);
    supervisor.run_once("ss", &command).await;
}
