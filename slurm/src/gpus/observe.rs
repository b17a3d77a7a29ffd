//! Which GPUs a host has.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use super::Make;

/// A GPU of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    pub make: Make,
    /// In the order of its nodes' numbers, from 0 for each make.
    pub rank: usize,
    /// In the node's name.
    pub number: u32,
    pub node: PathBuf,
    /// By this user, in the device cgroup in which Slurm has put the job.
    pub may_open: bool,
    /// As NVIDIA's driver tells.
    pub told: Option<Told>,
}

/// What NVIDIA's driver tells of a GPU in /proc/driver/nvidia/gpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// On the PCI bus, as its folder is called.
    pub bus: String,
    pub minor: u32,
    pub uuid: String,
}

/// What is here.
#[derive(Debug)]
pub struct Observed {
    /// By make, then by number.
    pub gpus: Vec<Gpu>,
}

impl Observed {
    pub fn of_this_host() -> Self {
        let root = Path::new("/");
        Self {
            gpus: gpus(root, &|node| {
                eaccess(node, AccessFlags::R_OK | AccessFlags::W_OK).is_ok()
            }),
        }
    }
}

/// The GPUs below `root`. A permission is asked for and not tried by opening, which would wake the GPU; the kernel asks
/// the device cgroup for it all the same (devcgroup_inode_permission).
fn gpus(root: &Path, may_open: &dyn Fn(&Path) -> bool) -> Vec<Gpu> {
    let told = told(&root.join("proc/driver/nvidia/gpus"));
    let mut all = Vec::new();
    for make in Make::ALL {
        let (folder, prefix) = match make {
            Make::Nvidia => ("dev", "nvidia"),
            Make::Amd => ("dev/dri", "renderD"),
        };
        let folder = root.join(folder);
        let mut numbers: Vec<u32> = names(&folder)
            .iter()
            .filter_map(|name| name.strip_prefix(prefix)?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let nodes = numbers.into_iter().filter_map(|number| {
            let name = format!("{prefix}{number}");
            let node = folder.join(&name);
            let is_device = fs::metadata(&node).is_ok_and(|meta| meta.file_type().is_char_device());
            let is_ours = make == Make::Nvidia || is_of_amd(root, &name);
            (is_device && is_ours).then_some((number, node))
        });
        all.extend(nodes.enumerate().map(|(rank, (number, node))| {
            Gpu {
                make,
                rank,
                number,
                may_open: may_open(&node),
                told: told
                    .iter()
                    .find(|told| make == Make::Nvidia && told.minor == number)
                    .cloned(),
                node,
            }
        }));
    }
    all
}

/// Names in a folder; none where there is no such folder, which is a host without such GPUs.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// /dev/dri has the nodes of all makes: AMD's number as a vendor on the PCI bus tells.
fn is_of_amd(root: &Path, name: &str) -> bool {
    let vendor = root.join("sys/class/drm").join(name).join("device/vendor");
    fs::read_to_string(vendor).is_ok_and(|text| text.trim() == "0x1002")
}

fn told(folder: &Path) -> Vec<Told> {
    let all = names(folder).into_iter().filter_map(|bus| {
        let text = fs::read_to_string(folder.join(&bus).join("information")).ok()?;
        let value = |field: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(field));
            line.map(|value| value.trim_start_matches(':').trim().to_owned())
        };
        Some(Told {
            minor: value("Device Minor")?.parse().ok()?,
            uuid: value("GPU UUID")?,
            bus,
        })
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A character device that anybody can have.
    fn node(root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink("/dev/null", path).unwrap();
    }

    #[test]
    fn nvidias_gpus_are_found_in_the_order_of_their_numbers_with_what_the_driver_tells() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for name in ["nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"] {
            node(root, &format!("dev/{name}"));
        }
        put(root, "dev/nvidia3", "no device");
        let told = "Model: \t\t A100\nGPU UUID: \t GPU-5a\nBus Location: \t 0000:07:00.0\nDevice Minor: \t 10\n";
        put(
            root,
            "proc/driver/nvidia/gpus/0000:07:00.0/information",
            told,
        );
        let all = gpus(root, &|node| node.ends_with("nvidia10"));
        let seen: Vec<_> = all.iter().map(|g| (g.rank, g.number, g.may_open)).collect();
        assert_eq!(seen, [(0, 2, false), (1, 10, true)]);
        assert_eq!(all[0].told, None);
        let told = all[1].told.as_ref().unwrap();
        assert_eq!(
            (told.bus.as_str(), told.uuid.as_str()),
            ("0000:07:00.0", "GPU-5a")
        );
    }

    #[test]
    fn of_render_nodes_only_amds_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for (number, vendor) in [(128, "0x8086\n"), (129, "0x1002\n"), (130, "0x1002\n")] {
            node(root, &format!("dev/dri/renderD{number}"));
            put(
                root,
                &format!("sys/class/drm/renderD{number}/device/vendor"),
                vendor,
            );
        }
        node(root, "dev/dri/renderD131");
        let all = gpus(root, &|_| true);
        let seen: Vec<_> = all.iter().map(|g| (g.make, g.rank, g.number)).collect();
        assert_eq!(seen, [(Make::Amd, 0, 129), (Make::Amd, 1, 130)]);
    }
}
