//! hpktainer on a host, outside any bubble: its places, the network it uses (that of a bubble of a job, where one runs,
//! else of a local bubble that it makes), and the namespaces that a container needs.
//!
//! On a host this program starts itself again with its places in the environment, and for what mounts, unmounts or
//! removes things, as root of a user, mount and PID namespace of its own: what is left of a killed one ends with it.
//!
//! - `bubble`: finding a bubble of a job of the user's on this host
//! - `local`: finding or making the local one; `keeper`: the process that holds it
//! - `namespaces`: entering new ones; `permission`: why a host may refuse them

mod bubble;
pub mod keeper;
mod local;
mod namespaces;
mod permission;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use hpk_images::private::{local_folder, local_parent};

use crate::container::{make_dir, write_file};
use crate::publish::{self, Publish};
use local::LocalBubble;

/// What a subcommand needs on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Its places only.
    Places,
    /// To be root of namespaces; of the local bubble's where there is one, since what is left of a container may be there.
    Namespaces,
    /// To be root of new namespaces, on the host's own network.
    OwnNamespaces,
    /// A bubble's network, too.
    Network,
}

/// Whether this is a host: no bubble, and nobody has said where the places are.
pub fn is_host() -> bool {
    !crate::config::in_bubble() && std::env::var_os("HPKTAINER_ROOT").is_none()
}

/// Starts this program again as the host needs it; returns its exit code, unless it goes on in its place.
///
/// `published` are ports of this host, bound here.
pub fn start_again(need: Need, background: bool, published: &[Publish]) -> anyhow::Result<u8> {
    let base = local_folder(&hpk_home()?, &local_parent())?;
    check_length(&base)?;
    let own = std::env::current_exe().context("finding this program")?;
    let network = match need {
        Need::Network => Network::find(&base, &own)?,
        Need::Namespaces => local::join(&base)?.map_or(Network::None, Network::Local),
        Need::Places | Need::OwnNamespaces => Network::None,
    };
    let published = publish::bind(published)?;
    let mut command = Command::new(&own);
    command.args(std::env::args_os().skip(1));
    for (name, value) in environment(&base, &own)
        .into_iter()
        .chain(network.environment(&base)?)
    {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    command.env(publish::VARIABLE, publish::hand_on(&published)?);
    if need != Need::Places
        && let Some(code) =
            namespaces::enter(background, network.local()).map_err(permission::explain)?
    {
        return Ok(code);
    }
    Err(command.exec()).with_context(|| format!("starting {} again", own.display()))
}

/// A socket's path has 107 bytes (unix(7)), and the shims' are the longest below `base`.
fn check_length(base: &Path) -> anyhow::Result<()> {
    const LONGEST: usize = 107 - "/s/".len() - 32;
    let length = base.as_os_str().len();
    if length > LONGEST {
        bail!(
            "{}: {length} bytes are too many for the paths of sockets in it, {LONGEST} at most; name a shorter folder than {} in HPK_LOCAL",
            base.display(),
            local_parent().display()
        );
    }
    Ok(())
}

/// `~/.hpk`, or HPK_HOME.
fn hpk_home() -> anyhow::Result<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    named("HPK_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(named("HOME")?).join(".hpk")))
        .context("neither HPK_HOME nor HOME is set")
}

/// Where a container's network comes from.
#[derive(Debug)]
enum Network {
    None,
    /// The node-local folder of a job's bubble: over its relay.
    Job(PathBuf),
    /// Ours: in its namespaces.
    Local(LocalBubble),
}

impl Network {
    /// A job's bubble where one runs, else the local one, made if need be.
    fn find(base: &Path, own: &Path) -> anyhow::Result<Self> {
        Ok(match bubble::find()? {
            Some(folder) => Self::Job(folder),
            None => Self::Local(local::join_or_start(base, own)?),
        })
    }

    fn local(&self) -> Option<&LocalBubble> {
        match self {
            Self::Local(bubble) => Some(bubble),
            _ => None,
        }
    }

    /// Where CNI's conf and cache, and resolv.conf are.
    fn environment(&self, base: &Path) -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
        let (conf, cache, folder) = match self {
            Self::None => {
                return Ok(vec![
                    ("HPK_CNI_CONF_DIR", base.join("no-network")),
                    ("HPK_CNI_CACHE_DIR", base.join("cni-cache")),
                ]);
            }
            Self::Job(folder) => (
                write_conflist(base, folder)?,
                base.join("cni-cache"),
                folder,
            ),
            Self::Local(bubble) => {
                let folder = &bubble.folder;
                (bubble.conf_dir(), folder.join("cache"), folder)
            }
        };
        let mut places = vec![
            ("HPK_CNI_CONF_DIR", conf),
            ("HPK_CNI_CACHE_DIR", cache),
            ("HPKTAINER_RESOLV_CONF", folder.join("resolv.conf")),
        ];
        if let Self::Local(bubble) = self {
            places.push(("HPKTAINER_NETWORK", bubble.network()));
        }
        Ok(places)
    }
}

/// Where everything is, by the variables that say so.
fn environment(base: &Path, own: &Path) -> Vec<(&'static str, PathBuf)> {
    let programs = own.parent().unwrap_or(Path::new("/"));
    vec![
        ("HPKTAINER_ROOT", base.join("containers")),
        ("HPKTAINER_RUN", base.join("run")),
        ("HPKTAINER_NETNS_DIR", base.join("netns")),
        ("HPK_CNI_BIN_DIR", programs.to_owned()),
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
    fn a_folder_too_long_for_sockets_is_told_with_what_to_do() {
        assert!(
            check_length(Path::new(
                "/scratch/slurm.1234567/hpktainer-123456-66168f82a7"
            ))
            .is_ok()
        );
        let fault = check_length(Path::new(&format!("/{}", "x".repeat(80)))).unwrap_err();
        assert!(fault.to_string().contains("HPK_LOCAL"), "{fault}");
    }

    #[test]
    fn the_network_of_a_host_is_the_relay_of_the_bubble() {
        let conf = conflist(Path::new("/tmp/hpktainer-7"), Path::new("/tmp/hpk-7-12-ab"));
        let plugin = &conf["plugins"][0];
        assert_eq!(plugin["relay"], "/tmp/hpk-7-12-ab/cni/relay");
        assert_eq!(plugin["dataDir"], "/tmp/hpktainer-7/cni");
        assert_eq!(plugin["datapath"], "tap");
    }
}
