//! What is read from the machine for the node's object.

use std::fs;
use std::path::Path;

use hpk_cgroup::Hierarchy;
use hpk_images::manifest::machine_architecture;
use nix::sys::statvfs::statvfs;

use super::object::Observed;
use crate::agent::Agent;
use crate::text;

/// Looks at the machine now.
pub fn observe(agent: &Agent) -> Observed {
    let args = &agent.config.args;
    let (disk, _) = disk(&args.root_dir);
    let not_ready = agent.network.is_configured().err().map(|error| {
        format!(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{}",
            text::chain(&error)
        )
    });
    Observed {
        machine_id: read("/etc/machine-id"),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel: read("/proc/sys/kernel/osrelease"),
        os_image: os_image(),
        architecture: machine_architecture().to_owned(),
        not_ready,
        standing: *agent.standing.borrow(),
        disk,
        images: agent.images.listed(),
        unenforced: unenforced(&agent.cgroups),
        single_id: agent.host.ids.is_single(),
    }
}

fn unenforced(hierarchies: &[Hierarchy]) -> Vec<&'static str> {
    let usable = hpk_cgroup::hierarchies::usable(hierarchies);
    let mut wanted = vec!["cpu", "memory"];
    wanted.retain(|name| !usable.iter().any(|have| have == name));
    wanted
}

fn read(path: &str) -> String {
    // Details for people; a machine without one of them is still a node.
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

fn os_image() -> String {
    let text = read("/etc/os-release");
    text.lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .unwrap_or_else(|| "Linux".to_owned())
}

/// Size and free bytes.
pub fn disk(path: &Path) -> (u64, u64) {
    match statvfs(path) {
        Ok(stat) => {
            let unit = stat.fragment_size();
            (stat.blocks() * unit, stat.blocks_available() * unit)
        }
        Err(_) => (0, 0),
    }
}

/// Bytes that the machine has left; nothing where it doesn't say.
pub fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
