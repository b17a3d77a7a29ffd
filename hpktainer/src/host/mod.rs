//! hpktainer on a host, outside any bubble: its places, the bubble whose network it uses, and the namespaces that a
//! container needs.
//!
//! On a host this program starts itself again with its places in the environment, and for what mounts, unmounts or
//! removes things, as root of a user, mount and PID namespace of its own: what is left of a killed one ends with it.
//!
//! - `bubble`: finding a bubble of the user's on this host
//! - `namespaces`: entering new ones

mod bubble;
mod namespaces;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use nix::unistd::Uid;

use crate::container::{make_dir, write_file};

/// What a subcommand needs on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Its places only.
    Places,
    /// To be root of namespaces.
    Namespaces,
    /// A bubble's network, too.
    Network,
}

/// Whether this is a host: no bubble, and nobody has said where the places are.
pub fn is_host() -> bool {
    !Path::new("/var/lib/hpk/bubble.json").exists() && std::env::var_os("HPKTAINER_ROOT").is_none()
}

/// Starts this program again as the host needs it; returns its exit code, unless it goes on in its place.
pub fn start_again(need: Need, background: bool) -> anyhow::Result<u8> {
    let base = local_folder()?;
    let network = match need {
        Need::Network => Some(bubble::find()?),
        _ => None,
    };
    let own = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(&own);
    command.args(std::env::args_os().skip(1));
    for (name, value) in environment(&base, &own) {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    if let Some(bubble) = &network {
        command.env("HPK_CNI_CONF_DIR", write_conflist(&base, bubble)?);
        command.env("HPKTAINER_RESOLV_CONF", bubble.join("resolv.conf"));
    }
    if need != Need::Places
        && let Some(code) = namespaces::enter(background)?
    {
        return Ok(code);
    }
    Err(command.exec()).with_context(|| format!("starting {} again", own.display()))
}

/// `hpktainer-UID` in HPK_LOCAL, TMPDIR or /tmp; 0700 and ours.
fn local_folder() -> anyhow::Result<PathBuf> {
    let uid = Uid::current();
    let folder = bubble::local_parent().join(format!("hpktainer-{uid}"));
    make_dir(&folder)?;
    let found = fs::symlink_metadata(&folder);
    let found = found.with_context(|| format!("looking at {}", folder.display()))?;
    if found.uid() != uid.as_raw() || !found.is_dir() || found.mode() & 0o077 != 0 {
        bail!("{} was made by someone else", folder.display());
    }
    Ok(folder)
}

/// Where everything is, by the variables that say so.
fn environment(base: &Path, own: &Path) -> Vec<(&'static str, PathBuf)> {
    let programs = own.parent().unwrap_or(Path::new("/"));
    vec![
        ("HPKTAINER_ROOT", base.join("containers")),
        ("HPKTAINER_RUN", base.join("run")),
        ("HPKTAINER_NETNS_DIR", base.join("netns")),
        ("HPK_CNI_CONF_DIR", base.join("no-network")),
        ("HPK_CNI_BIN_DIR", programs.to_owned()),
        ("HPK_CNI_CACHE_DIR", base.join("cni-cache")),
        ("HPK_RUNTIME", programs.join("containerd-shim-hpk-v2")),
        ("HPK_LOGGER", programs.join("hpk-logger")),
        ("HPK_SHIM_SOCKET_DIR", base.join("s")),
        ("HPK_LOCAL_DIR", base.join("images")),
    ]
}

/// The network of a bubble, as CNI callers read it; kept, since DEL reads it too.
fn write_conflist(base: &Path, bubble: &Path) -> anyhow::Result<PathBuf> {
    let name = bubble.file_name().unwrap_or_default();
    let folder = base.join("net.d").join(name);
    make_dir(&folder)?;
    let text = serde_json::to_vec_pretty(&conflist(base, bubble)).context("writing a conflist")?;
    write_file(&folder.join("10-hpk.conflist"), 0o600, &text)?;
    Ok(folder)
}

fn conflist(base: &Path, bubble: &Path) -> serde_json::Value {
    serde_json::json!({
        "cniVersion": "1.1.0",
        "name": "hpktainer-host",
        "plugins": [{
            "type": "cni-hpk",
            "datapath": "tap",
            "relay": bubble.join(bubble::RELAY),
            "dataDir": base.join("cni"),
        }],
    })
}

/// The code a shell would tell; none while it hasn't ended.
fn code_of(status: nix::sys::wait::WaitStatus) -> Option<u8> {
    use nix::sys::wait::WaitStatus::{Exited, Signaled};
    match status {
        Exited(_, code) => Some(u8::try_from(code).unwrap_or(u8::MAX)),
        Signaled(_, signal, _) => Some(128 + u8::try_from(signal as i32).unwrap_or(0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_of_a_host_is_the_relay_of_the_bubble() {
        let conf = conflist(Path::new("/tmp/hpktainer-7"), Path::new("/tmp/hpk-7-12-ab"));
        let plugin = &conf["plugins"][0];
        assert_eq!(plugin["relay"], "/tmp/hpk-7-12-ab/cni/relay");
        assert_eq!(plugin["dataDir"], "/tmp/hpktainer-7/cni");
        assert_eq!(plugin["datapath"], "tap");
    }
}
