//! The places hpktainer uses, each settable by an environment variable.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use hpk_images::StoreConfig;
use hpk_images::limits::STORE_SETTING;
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
    /// `HPKTAINER_NETWORK`: the network namespace that CNI's plugins run in; unless set, ours.
    pub network: Option<PathBuf>,
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
        let set = |name: &str| {
            let set = std::env::var_os(name).filter(|v| !v.is_empty());
            set.map(PathBuf::from)
        };
        let place = |name: &str, default: &str| set(name).unwrap_or_else(|| default.into());
        Self {
            root: place("HPKTAINER_ROOT", "/var/lib/hpk/hpktainer"),
            run: place("HPKTAINER_RUN", "/run/hpk/hpktainer"),
            netns: place("HPKTAINER_NETNS_DIR", "/run/netns"),
            resolv_conf: place("HPKTAINER_RESOLV_CONF", "/etc/resolv.conf"),
            network: set("HPKTAINER_NETWORK"),
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
    #[serde(default)]
    store_max_gib: Option<u64>,
}

const BUBBLE: &str = "/var/lib/hpk/bubble.json";

/// Whether this is a bubble, and no host.
pub fn in_bubble() -> bool {
    Path::new(BUBBLE).exists()
}

/// The image store: each place the environment's, else HPK_HOME's, else the bubble's, else `~/.hpk`'s.
pub fn store() -> anyhow::Result<StoreConfig> {
    let mut config = StoreConfig::from_env()?;
    let is_named = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_named("HPK_HOME") {
        return Ok(config);
    }
    if let Some(bubble) = read_bubble(Path::new(BUBBLE))? {
        bubble.fill(&mut config, is_named);
    }
    Ok(config)
}

impl Bubble {
    /// What the environment doesn't name is the bubble's.
    fn fill(self, config: &mut StoreConfig, is_named: impl Fn(&str) -> bool) {
        if !is_named("HPK_STORE") {
            config.root = self.store;
        }
        if !is_named("HPK_REGISTRIES") {
            config.registries = Some(self.registries);
        }
        if !is_named("HPK_POLICY") {
            config.policy = Some(self.policy);
        }
        if !is_named("REGISTRY_AUTH_FILE") {
            config.logins = self.logins;
        }
        if !is_named(STORE_SETTING) {
            config.max_bytes = self.store_max_gib.map(|gib| gib << 30);
        }
    }
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

    #[test]
    fn what_the_environment_names_goes_before_the_bubbles_each_by_itself() {
        let bubble = || Bubble {
            store: "/b/store".into(),
            registries: "/b/r".into(),
            policy: "/b/policy".into(),
            logins: vec!["/b/l".into()],
            store_max_gib: Some(2),
        };
        let own = || StoreConfig {
            root: "/e/store".into(),
            registries: None,
            logins: Vec::new(),
            policy: None,
            max_bytes: None,
            local_dir: "/e".into(),
            limits: hpk_images::Limits::default(),
        };
        let mut config = own();
        bubble().fill(&mut config, |_| false);
        assert_eq!(config.root, Path::new("/b/store"));
        assert_eq!(config.max_bytes, Some(2 << 30));
        let mut config = own();
        bubble().fill(&mut config, |name| name == "HPK_STORE");
        assert_eq!(config.root, Path::new("/e/store"));
        assert_eq!(config.policy.unwrap(), Path::new("/b/policy"));
    }
}
