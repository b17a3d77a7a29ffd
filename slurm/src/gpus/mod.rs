//! A host's GPUs: whose driver a bubble gets, and which of them its pods may have.
//!
//! - `grant`: what Slurm granted, or the user named (pure)
//! - `observe`: which GPUs are here, and which of them may be opened
//! - `choose`: from both, the device nodes for pods, or why there are none (pure)
//!
//! Guarantees: a GPU that Slurm didn't grant is never offered; what can't be told for sure is said and not offered.

mod choose;
mod grant;
mod observe;

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::allocation::Variables;
use grant::Grant;
use observe::Observed;

/// A driver's device node, and Apptainer's option that brings the driver's files. (The nodes are in a bubble's
/// /dev, which is the host's: which of them may be opened is Slurm's to say.)
const DRIVERS: [(&str, &str); 2] = [("nvidiactl", "--nv"), ("kfd", "--rocm")];

/// The options for what is in the folder `devices`.
pub fn driver_options(devices: &Path) -> Vec<&'static str> {
    let has = |node: &str| devices.join(node).exists();
    let all = DRIVERS.into_iter().filter(|(node, _)| has(node));
    all.map(|(_, option)| option).collect()
}

/// Whose GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    Nvidia,
    Amd,
}

impl Make {
    pub const ALL: [Self; 2] = [Self::Nvidia, Self::Amd];

    /// What its device plugin calls them, and so pods do.
    fn resource(self) -> &'static str {
        match self {
            Self::Nvidia => "nvidia.com/gpu",
            Self::Amd => "amd.com/gpu",
        }
    }

    /// The node that each of its GPUs needs beside its own. (NVIDIA's come with the driver.)
    fn control_node(self) -> Option<&'static str> {
        match self {
            Self::Nvidia => None,
            Self::Amd => Some("/dev/kfd"),
        }
    }
}

/// One GPU that pods may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// As pods ask for it.
    pub resource: String,
    /// Its own node first.
    pub nodes: Vec<PathBuf>,
}

impl Device {
    /// As hpk-kubelet's option `--device` takes it.
    pub fn argument(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|n| n.display().to_string()).collect();
        format!("{}={}", self.resource, nodes.join(","))
    }
}

/// The GPUs for pods, and why there are none where there might be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub devices: Vec<Device>,
    pub withheld: Option<String>,
}

/// What this host offers.
///
/// # Errors
/// HPK_GPUS names what this host hasn't.
pub fn offer(variables: &Variables) -> Result<Offer> {
    choose::choose(&Grant::parse(variables)?, &Observed::of_this_host())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_asked_for_where_its_device_is() {
        let devices = tempfile::tempdir().unwrap();
        assert_eq!(driver_options(devices.path()), [""; 0]);
        for node in ["nvidiactl", "kfd"] {
            std::fs::write(devices.path().join(node), "").unwrap();
        }
        assert_eq!(driver_options(devices.path()), ["--nv", "--rocm"]);
    }

    #[test]
    fn a_device_is_told_to_the_kubelet_with_all_its_nodes() {
        let device = Device {
            resource: "amd.com/gpu".into(),
            nodes: vec!["/dev/dri/renderD129".into(), "/dev/kfd".into()],
        };
        assert_eq!(
            device.argument(),
            "amd.com/gpu=/dev/dri/renderD129,/dev/kfd"
        );
    }
}
