//! The datapath `tap`: a pod's TAP and one on the bridge, joined by a resident
//! `hpk-net-daemon relay serve`.
//!
//! Expected flow: the plugin makes both TAPs and their addresses, writes its
//! record, and asks the resident daemon, over its UNIX socket, to join them.
//! Where the pod is in another user namespace than the bridge, the plugin is a
//! *far* one: it has the daemon run the bridge's side (address, record, the
//! bridge's TAP) by the bubble's own plugin, and a process on the pod's side
//! holds the pod's TAP.
//!
//! Guarantees: frames keep their order; super-frames and unfinished checksums
//! go through whole; a full socket holds the sender up and loses nothing. Both
//! TAPs outlive every process here, so either side may be killed at any moment:
//! the daemon finds what was joined in the plugin's records, the pod's side
//! connects again. What is left of an attachment nobody can reach is released.
//!
//! Assumptions: whoever may use the socket is the same user (0600, in a folder
//! 0700, and peer credentials are compared both ways).
//!
//! Layout:
//! - [`wire`]: requests, answers, frames
//! - [`socket`]: the UNIX socket, descriptors, peer credentials
//! - [`engine`]: moving frames from TAP to TAP; [`pump`], [`batch`]: from and to
//!   a socket; [`joined`]: either
//! - [`resident`]: the daemon; [`proxy`]: the plugin it runs for far callers
//! - [`pod`]: the pod's side; [`launch`]: starting either
//! - [`client`]: what the plugin asks
//! - [`stats`], [`config`], [`error`]

pub mod batch;
pub mod client;
pub mod config;
pub mod engine;
pub mod error;
pub mod joined;
pub mod launch;
pub mod pod;
pub mod proxy;
pub mod pump;
pub mod resident;
pub mod socket;
pub mod stats;
pub mod wire;

use std::path::{Path, PathBuf};

use config::Config;
use error::Error;

/// The folder of the socket, the lock and the log.
pub fn folder_of(data_dir: &Path) -> PathBuf {
    data_dir.join("relay")
}

/// Runs a subcommand.
pub fn run(config: Config) -> Result<(), Error> {
    match config {
        Config::Serve(config) => resident::serve(config),
        Config::Pod => pod::main(),
        Config::Status(config) => {
            let text = client::Daemon::of(&folder_of(&config.data_dir)).status()?;
            print!("{text}");
            Ok(())
        }
    }
}
