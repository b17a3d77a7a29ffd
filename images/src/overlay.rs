//! The mounts of a container's root file system: an overlay over the image, in the form of runtime v2's `rootfs`.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// One mount, field by field as in containerd's `types.Mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// File system type, e.g. `overlay`.
    pub kind: String,
    /// Source, e.g. `overlay` or a device.
    pub source: String,
    /// Target below the root file system; empty for the root itself.
    pub target: String,
    /// Options, one each.
    pub options: Vec<String>,
}

/// Who overlays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The kernel, in the initial user namespace.
    Kernel,
    /// The kernel, in another user namespace: marks in `user.*` attributes (`userxattr`, kernel 5.11), since
    /// `trusted.*` ones need the initial namespace's root.
    KernelUserxattr,
    /// fuse-overlayfs, where the kernel refuses; a process per mount.
    Fuse,
}

/// The mounts that make a writable root file system of `lower` (an image's mount): one overlay.
///
/// `upper` and `work` are empty folders of one node-local file system, made and removed by the caller. The driver is
/// probed once per process, by a trial mount beside `upper`.
pub fn rootfs_mounts(lower: &Path, upper: &Path, work: &Path) -> Vec<Mount> {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    let driver = *DRIVER.get_or_init(|| {
        let namespaced = in_user_namespace("/proc/self/uid_map".as_ref());
        let scratch = upper.parent().unwrap_or(upper);
        probe(scratch, namespaced)
    });
    vec![plan(driver, lower, upper, work)]
}

/// The overlay mount for a known driver.
pub fn plan(driver: Driver, lower: &Path, upper: &Path, work: &Path) -> Mount {
    let mut options: Vec<String> = [("lowerdir", lower), ("upperdir", upper), ("workdir", work)]
        .into_iter()
        .map(|(name, path)| format!("{name}={}", escape(path)))
        .collect();
    if driver == Driver::KernelUserxattr {
        options.push("userxattr".to_owned());
    }
    Mount {
        kind: match driver {
            Driver::Kernel | Driver::KernelUserxattr => "overlay",
            // As containerd's fuse-overlayfs snapshotter names it: mount(8) runs it through mount.fuse3.
            Driver::Fuse => "fuse3.fuse-overlayfs",
        }
        .to_owned(),
        source: "overlay".to_owned(),
        target: String::new(),
        options,
    }
}

/// Overlayfs splits its options at `,` and lowerdir at `:`; a backslash takes their meaning away.
fn escape(path: &Path) -> String {
    let mut escaped = String::new();
    for c in path.to_string_lossy().chars() {
        if matches!(c, ',' | ':' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Finds the driver that works for folders below `scratch`, by a trial mount.
///
/// Any failure of the trial, the lack of room for its folders included, means [`Driver::Fuse`]: its own mount then
/// says what is wrong.
pub fn probe(scratch: &Path, namespaced: bool) -> Driver {
    let (driver, extra) = match namespaced {
        true => (Driver::KernelUserxattr, ",userxattr"),
        false => (Driver::Kernel, ""),
    };
    let Ok(trial) = tempfile::Builder::new()
        .prefix(".overlay-probe-")
        .tempdir_in(scratch)
    else {
        return Driver::Fuse;
    };
    let at = |name: &str| trial.path().join(name);
    if ["lower", "upper", "work", "merged"]
        .iter()
        .any(|d| fs::create_dir(at(d)).is_err())
    {
        return Driver::Fuse;
    }
    let data = format!(
        "lowerdir={},upperdir={},workdir={}{extra}",
        escape(&at("lower")),
        escape(&at("upper")),
        escape(&at("work"))
    );
    let merged = at("merged");
    match mount(
        Some("overlay"),
        &merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(data.as_str()),
    ) {
        Ok(()) => {
            // A failed unmount leaves an empty overlay in our own scratch folder, which ends with the namespace.
            let _ = umount2(&merged, MntFlags::MNT_DETACH);
            driver
        }
        Err(errno) => {
            tracing::info!(%errno, "the kernel refuses overlays here; fuse-overlayfs takes over");
            Driver::Fuse
        }
    }
}

/// Whether the process with this `uid_map` is in another than the initial user namespace (which maps all 2³²−1 ids
/// onto themselves).
pub fn in_user_namespace(uid_map: &Path) -> bool {
    let Ok(map) = fs::read_to_string(uid_map) else {
        return true;
    };
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_has_its_mount() {
        let of = |driver| plan(driver, "/l".as_ref(), "/u".as_ref(), "/w".as_ref());
        let kernel = of(Driver::Kernel);
        assert_eq!(kernel.options, ["lowerdir=/l", "upperdir=/u", "workdir=/w"]);
        assert_eq!(
            (kernel.kind.as_str(), kernel.source.as_str()),
            ("overlay", "overlay")
        );
        assert_eq!(
            of(Driver::KernelUserxattr).options.last().unwrap(),
            "userxattr"
        );
        assert_eq!(of(Driver::Fuse).kind, "fuse3.fuse-overlayfs");
    }

    #[test]
    fn separators_in_paths_are_escaped() {
        assert_eq!(escape("/a:b,c\\d".as_ref()), "/a\\:b\\,c\\\\d");
    }

    #[test]
    fn only_the_full_identity_map_is_the_initial_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let map = dir.path().join("uid_map");
        fs::write(&map, "         0          0 4294967295\n").unwrap();
        assert!(!in_user_namespace(&map));
        fs::write(&map, "0 1000 1\n1 100000 65536\n").unwrap();
        assert!(in_user_namespace(&map));
    }
}
