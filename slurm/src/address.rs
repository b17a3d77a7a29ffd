//! The address by which other hosts reach this one.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// This host's address as `peer` sees it, or, without a peer, as the default route has it.
/// HPK_HOST_IP overrides it.
pub fn own_address(peer: Option<&str>) -> Result<Ipv4Addr> {
    if let Ok(text) = std::env::var("HPK_HOST_IP") {
        return text
            .parse()
            .with_context(|| format!("HPK_HOST_IP={text} is no IPv4 address"));
    }
    let target = match peer {
        Some(name) => resolve(name)?,
        None => Ipv4Addr::new(192, 0, 2, 1), // never asked: connect() only looks at the routes
    };
    let look = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((target, 9))?;
        Ok(socket.local_addr()?.ip())
    };
    match (look(), peer) {
        (Ok(IpAddr::V4(address)), _) if !address.is_unspecified() => Ok(address),
        // No default route: a host alone is reached by its own name.
        (_, None) => {
            let name = nix::unistd::gethostname().context("asking for this host's name")?;
            resolve(&name.to_string_lossy())
        }
        (Ok(address), Some(name)) => {
            bail!("the way to {name} begins at {address}, no IPv4 address")
        }
        (Err(error), Some(name)) => bail!("no route to {name} ({target}): {error}"),
    }
}

/// By getent, which asks whatever the site's hosts ask; a static program can't.
fn resolve(name: &str) -> Result<Ipv4Addr> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let output = Command::new("getent")
        .args(["ahostsv4", name])
        .output()
        .context("running getent")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("host {name} has no IPv4 address that getent knows"))
}
