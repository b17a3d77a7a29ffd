//! The command lines of `hpk-net-daemon relay`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Joins pods' TAPs to the bridge.
#[derive(Clone, Debug, Subcommand)]
pub enum Config {
    /// The resident daemon, beside the bridge
    Serve(ServeConfig),
    /// A pod's side; started by ADD, told what to do on stdin
    Pod,
    /// Prints the resident daemon's counters, as Prometheus reads them
    Status(StatusConfig),
}

#[derive(Clone, Debug, Args)]
pub struct ServeConfig {
    /// The plugin's dataDir; the socket is in its folder `relay`
    #[arg(long, default_value = "/var/lib/hpk/cni")]
    pub data_dir: PathBuf,
    /// Conflists; the first with plugin cni-hpk is the network of callers from outside
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// Folders of plugins
    #[arg(long, value_delimiter = ':', default_value = "/opt/cni/bin")]
    pub cni_path: Vec<PathBuf>,
    /// End when there is nothing to relay
    #[arg(long)]
    pub until_idle: bool,
}

#[derive(Clone, Debug, Args)]
pub struct StatusConfig {
    /// The plugin's dataDir
    #[arg(long, default_value = "/var/lib/hpk/cni")]
    pub data_dir: PathBuf,
}
