//! The mounts of a container's root file system: an overlay over the image, in the form of runtime v2's `rootfs`.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Component, Path, PathBuf};
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

/// Makes in the overlay's `upper` what the image declares as volumes (VOLUME of a Dockerfile) and doesn't have: empty
/// folders, as other runtimes mount there. They are part of the container's own layer. What lies behind a link is left out.
///
/// # Errors
/// Where a folder can't be made, or given the owner that the image's has.
pub fn make_volumes(lower: &Path, upper: &Path, volumes: &[String]) -> io::Result<()> {
    for volume in volumes {
        let inside: Option<PathBuf> = Path::new(volume)
            .components()
            .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
            .map(|part| matches!(part, Component::Normal(_)).then_some(part))
            .collect();
        if let Some(inside) = inside {
            make_volume(lower, upper, &inside)?;
        }
    }
    Ok(())
}

fn make_volume(lower: &Path, upper: &Path, volume: &Path) -> io::Result<()> {
    // The image's own, from the root down; then what lacks.
    let mut here = Vec::new();
    let mut lacking = Vec::new();
    let all: Vec<&Path> = volume.ancestors().collect();
    for folder in all
        .into_iter()
        .rev()
        .filter(|it| !it.as_os_str().is_empty())
    {
        match fs::symlink_metadata(lower.join(folder)) {
            Ok(found) if found.is_dir() => here.push((folder, found)),
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => lacking.push(folder),
            Err(e) => return Err(e),
        }
    }
    if lacking.is_empty() {
        return Ok(());
    }
    // A folder of the upper layer hides what the image says of its own.
    for (folder, found) in here {
        let made = upper.join(folder);
        if !made.exists() {
            fs::create_dir(&made)?;
            chown(&made, Some(found.uid()), Some(found.gid()))?;
            fs::set_permissions(&made, found.permissions())?;
        }
    }
    for folder in lacking {
        let made = upper.join(folder);
        if !made.exists() {
            fs::create_dir(&made)?;
            fs::set_permissions(&made, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
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
    fn volumes_that_an_image_lacks_are_made_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
        fs::create_dir_all(lower.join("var/lib")).unwrap();
        fs::set_permissions(lower.join("var"), fs::Permissions::from_mode(0o710)).unwrap();
        std::os::unix::fs::symlink("/var", lower.join("link")).unwrap();
        fs::create_dir(&upper).unwrap();
        let volumes = [
            "/var/lib/data/x",
            "/new/",
            "/var/lib",
            "/link/data",
            "/../../up",
            "/",
        ];
        make_volumes(&lower, &upper, &volumes.map(str::to_owned)).unwrap();
        // Of a container that is started anew.
        make_volumes(&lower, &upper, &volumes.map(str::to_owned)).unwrap();
        let mut made: Vec<String> = fs::read_dir(&upper)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        made.sort();
        assert_eq!(made, ["new", "var"]);
        assert!(upper.join("var/lib/data/x").is_dir());
        let mode = |path: &str| fs::metadata(upper.join(path)).unwrap().mode() & 0o7777;
        assert_eq!(
            (mode("var"), mode("var/lib/data"), mode("new")),
            (0o710, 0o755, 0o755)
        );
        assert!(!dir.path().join("up").exists());
    }

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
