//! What IPv6 does of itself on a device.

use std::path::Path;

use super::Error;

/// No IPv6 but what is given: no redirects, which would lead to neighbours
/// that can't be reached but through the gateway; no routers' advertisements;
/// no waiting for a duplicate's answer. In the calling thread's network
/// namespace, whose settings /proc/sys/net shows.
pub fn quiet(device: &str) -> Result<(), Error> {
    let folder = Path::new("/proc/sys/net/ipv6/conf").join(device);
    // In the order of their weight.
    for (name, value) in [
        ("disable_ipv6", "0"),
        ("accept_redirects", "0"),
        ("accept_ra", "0"),
        ("accept_dad", "0"),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, value).map_err(|source| {
            let setting = format!("{} to {value}", path.display());
            Error::new("set", setting, source)
        })?;
    }
    Ok(())
}
