//! Which GPUs' drivers a bubble gets from its host.

use std::path::Path;

/// A driver's device node, and Apptainer's option that brings the driver's files. (The nodes are in a bubble's
/// /dev, which is the host's: which of them may be opened is Slurm's to say.)
const DRIVERS: [(&str, &str); 2] = [("nvidiactl", "--nv"), ("kfd", "--rocm")];

/// The options for what is in the folder `devices`.
pub fn driver_options(devices: &Path) -> Vec<&'static str> {
    let has = |node: &str| devices.join(node).exists();
    let all = DRIVERS.into_iter().filter(|(node, _)| has(node));
    all.map(|(_, option)| option).collect()
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
}
