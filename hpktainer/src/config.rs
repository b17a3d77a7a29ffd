//! The places hpktainer uses, each settable by an environment variable.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use hpk_images::StoreConfig;
use serde::Deserialize;

/// Places in the bubble, or those `host` has found.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HPKTAINER_ROOT`: containers' records, writable layers and logs; node-local.
    pub root: PathBuf,
    /// `HPKTAINER_RUN`: bundles, pipes and sockets.
    pub run: PathBuf,
    /// `HPKTAINER_NETNS_DIR`: pins of network namespaces.
    pub netns: PathBuf,
    /// `HPKTAINER_RESOLV_CONF`: the containers' resolv.conf.
    pub resolv_conf: PathBuf,
    /// `HPK_CNI_CONF_DIR`.
    pub cni_conf_dir: PathBuf,
    /// `HPK_CNI_BIN_DIR`.
    pub cni_bin_dir: PathBuf,
    /// `HPK_CNI_CACHE_DIR`.
    pub cni_cache_dir: PathBuf,
    /// `HPK_RUNTIME`: the runtime v2 shim.
    pub shim: PathBuf,
    /// `HPK_LOGGER`: keeps the output of detached containers.
    pub logger: PathBuf,
}

impl Config {
    /// The environment's, or the bubble's usual places.
    pub fn from_env() -> Self {
        let place = |name: &str, default: &str| {
            let set = std::env::var_os(name).filter(|v| !v.is_empty());
            PathBuf::from(set.unwrap_or_else(|| default.into()))
        };
        Self {
            root: place("HPKTAINER_ROOT", "/var/lib/hpk/hpktainer"),
            run: place("HPKTAINER_RUN", "/run/hpk/hpktainer"),
            netns: place("HPKTAINER_NETNS_DIR", "/run/netns"),
            resolv_conf: place("HPKTAINER_RESOLV_CONF", "/etc/resolv.conf"),
            cni_conf_dir: place("HPK_CNI_CONF_DIR", "/etc/cni/net.d"),
            cni_bin_dir: place("HPK_CNI_BIN_DIR", "/opt/cni/bin"),
            cni_cache_dir: place("HPK_CNI_CACHE_DIR", "/var/lib/hpk/cni/cache"),
            shim: place("HPK_RUNTIME", "/usr/local/bin/containerd-shim-hpk-v2"),
            logger: place("HPK_LOGGER", "/usr/local/bin/hpk-logger"),
        }
    }
}

/// What the bubble was told by its host; of interest here: where the user's image store is. HOME doesn't say, since in
/// a bubble it is root's.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Bubble {
    store: PathBuf,
    registries: PathBuf,
    policy: PathBuf,
    logins: Vec<PathBuf>,
}

/// The image store: the environment's (HPK_STORE, HPK_HOME), else the bubble's, else `~/.hpk`'s.
pub fn store() -> anyhow::Result<StoreConfig> {
    let config = StoreConfig::from_env()?;
    let named = ["HPK_STORE", "HPK_HOME"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    let bubble = match named {
        true => None,
        false => read_bubble(Path::new("/var/lib/hpk/bubble.json"))?,
    };
    Ok(match bubble {
        Some(bubble) => StoreConfig {
            root: bubble.store,
            registries: Some(bubble.registries),
            policy: Some(bubble.policy),
            logins: bubble.logins,
            ..config
        },
        None => config,
    })
}

fn read_bubble(path: &Path) -> anyhow::Result<Option<Bubble>> {
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("reading {}", path.display()))?,
    };
    let bubble = serde_json::from_slice(&bytes);
    bubble
        .map(Some)
        .with_context(|| format!("parsing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bubble_names_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bubble.json");
        assert_eq!(read_bubble(&file).unwrap(), None);
        std::fs::write(
            &file,
            r#"{"node":"n","store":"/h/s","registries":"/h/r","policy":"/h/p","logins":[]}"#,
        )
        .unwrap();
        let bubble = read_bubble(&file).unwrap().unwrap();
        assert_eq!(
            (bubble.store, bubble.registries),
            ("/h/s".into(), "/h/r".into())
        );
        std::fs::write(&file, "{}").unwrap();
        assert!(read_bubble(&file).is_err());
    }
}
