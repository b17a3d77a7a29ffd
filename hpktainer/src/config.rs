//! The places hpktainer uses, each settable by an environment variable.

use std::path::PathBuf;

/// Places in the bubble.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HPKTAINER_ROOT`: containers' records, writable layers and logs; node-local.
    pub root: PathBuf,
    /// `HPKTAINER_RUN`: bundles, pipes and sockets.
    pub run: PathBuf,
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
            cni_conf_dir: place("HPK_CNI_CONF_DIR", "/etc/cni/net.d"),
            cni_bin_dir: place("HPK_CNI_BIN_DIR", "/opt/cni/bin"),
            cni_cache_dir: place("HPK_CNI_CACHE_DIR", "/var/lib/hpk/cni/cache"),
            shim: place("HPK_RUNTIME", "/usr/local/bin/containerd-shim-hpk-v2"),
            logger: place("HPK_LOGGER", "/usr/local/bin/hpk-logger"),
        }
    }
}
