//! The spec's mounts and devices. The shim opens each bind's source outside; the trampoline
//! attaches it inside (so no source needs to be visible in the container).

use std::path::{Path, PathBuf};

use hpk_pause::wire;
use nix::mount::MsFlags;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount, Spec};

use super::Source;
use crate::error::Error;

/// Device nodes every container has.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Twelve bits and twenty (linux/kdev_t.h).
const MOST_MAJOR: u32 = 0xfff;
const MOST_MINOR: u32 = 0xf_ffff;

/// A mount of cgroups, until it is known which.
pub const CGROUP: &str = "cgroup";

/// The options of mounts that are done; file systems may know more.
pub const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "loud",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnosuid",
    "ro",
    "rprivate",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rsuid",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "sync",
    "unbindable",
];

/// What the spec's mounts and devices come to.
pub struct Planned {
    pub mounts: Vec<wire::Mount>,
    pub devices: Vec<wire::Device>,
    pub populate_dev: bool,
    pub sources: Vec<Source>,
    pub keep_proc: bool,
    pub keep_sys: bool,
    pub warnings: Vec<String>,
}

/// Plans mounts and devices; sources' descriptors are numbered from `first`.
pub fn plan(spec: &Spec, bundle: &Path, first: wire::Fd) -> Result<Planned, Error> {
    let mut planned = Planned {
        mounts: Vec::new(),
        devices: Vec::new(),
        populate_dev: true,
        sources: Vec::new(),
        keep_proc: false,
        keep_sys: false,
        warnings: Vec::new(),
    };
    for (n, m) in spec.mounts().iter().flatten().enumerate() {
        let field = format!("mounts[{n}] ({})", m.destination().display());
        let mount = planned.mount(m, bundle, first, field)?;
        match mount.destination.as_str() {
            "/proc" => planned.keep_proc = true,
            "/sys" => planned.keep_sys = true,
            "/dev" if mount.tree.is_some() => planned.populate_dev = false,
            _ => {}
        }
        planned.mounts.push(mount);
    }
    if planned.populate_dev {
        for (path, major, minor) in DEFAULT_DEVICES {
            planned.device(
                first,
                path.into(),
                (libc::S_IFCHR, 0o666, major, minor),
                (0, 0),
                true,
            )?;
        }
        let linux = spec.linux().as_ref();
        for device in linux
            .and_then(|l| l.devices().as_ref())
            .into_iter()
            .flatten()
        {
            planned.spec_device(first, device)?;
        }
    } else if spec
        .linux()
        .as_ref()
        .is_some_and(|l| l.devices().as_ref().is_some_and(|d| !d.is_empty()))
    {
        planned
            .warnings
            .push("linux.devices is not done: /dev is bound as it is".to_owned());
    }
    Ok(planned)
}

impl Planned {
    fn source(&mut self, first: wire::Fd, source: Source) -> wire::Fd {
        self.sources.push(source);
        first + (self.sources.len() - 1) as wire::Fd
    }

    fn mount(
        &mut self,
        m: &Mount,
        bundle: &Path,
        first: wire::Fd,
        field: String,
    ) -> Result<wire::Mount, Error> {
        for mappings in [m.uid_mappings(), m.gid_mappings()] {
            if mappings.as_ref().is_some_and(|l| !l.is_empty()) {
                let why = "id-mapped mounts are not made";
                return Err(Error::Unsupported {
                    field: format!("{field} uidMappings"),
                    why,
                });
            }
        }
        let destination = absolute(m.destination());
        if is_root(&destination) {
            return Err(Error::Invalid {
                field,
                why: "its destination is the root itself".to_owned(),
            });
        }
        let options = parse_options(m.options().as_deref().unwrap_or_default(), &field)?;
        let kind = m.typ().clone().unwrap_or_default();
        let bind = options.bind || kind == "bind" || kind == "rbind";
        let source = m.source().clone().unwrap_or_default();
        let mut mount = wire::Mount {
            destination,
            tree: None,
            source: source.to_string_lossy().into_owned(),
            flags: options.flags.bits(),
            clear_flags: options.clear.bits(),
            recursive_flags: options.recursive_flags,
            propagation: options.propagation.bits(),
            data: options.data.join(","),
            kind: if bind { "bind".to_owned() } else { kind },
        };
        if mount.kind == "cgroup" || mount.kind == "cgroup2" {
            // What it shows depends on the cgroup the container gets: see `cgroup_view`.
            mount.kind = CGROUP.to_owned();
            mount.data.clear();
        } else if bind {
            if let Some(option) = options.data.first() {
                return Err(Error::Invalid {
                    field,
                    why: format!("a bind has no option {option:?}"),
                });
            }
            if source.as_os_str().is_empty() {
                return Err(Error::Invalid {
                    field,
                    why: "a bind has no source".to_owned(),
                });
            }
            let recursive = options.recursive || m.typ().as_deref() == Some("rbind");
            let path = bundle.join(&source);
            mount.tree = Some(self.source(
                first,
                Source {
                    path,
                    recursive,
                    field,
                    optional: false,
                },
            ));
        }
        if mount.tree.is_some() && mount.propagation == 0 {
            mount.propagation = (MsFlags::MS_REC | MsFlags::MS_PRIVATE).bits();
        }
        Ok(mount)
    }

    /// Bound from the host's node of that name and number where there is one: the only way in a
    /// user namespace.
    fn device(
        &mut self,
        first: wire::Fd,
        path: PathBuf,
        (kind, mode, major, minor): (u32, u32, u32, u32),
        (uid, gid): (u32, u32),
        optional: bool,
    ) -> Result<(), Error> {
        let name = path.to_string_lossy().into_owned();
        // A spec may list a default device again; the first one is there already.
        if let Some(first) = self.devices.iter().find(|d| d.path == name) {
            if (first.kind, first.major, first.minor) == (kind, major, minor) {
                return Ok(());
            }
            return Err(Error::Invalid {
                field: format!("linux.devices {name}"),
                why: format!(
                    "it is {major}:{minor}, and {}:{} as well",
                    first.major, first.minor
                ),
            });
        }
        let tree = (kind != libc::S_IFIFO).then(|| {
            let field = format!("linux.devices {name}");
            self.source(
                first,
                Source {
                    path,
                    recursive: false,
                    field,
                    optional: true,
                },
            )
        });
        self.devices.push(wire::Device {
            path: name,
            tree,
            kind,
            mode,
            major,
            minor,
            uid,
            gid,
            optional,
        });
        Ok(())
    }

    fn spec_device(&mut self, first: wire::Fd, device: &LinuxDevice) -> Result<(), Error> {
        let kind = match device.typ() {
            LinuxDeviceType::B => libc::S_IFBLK,
            LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
            LinuxDeviceType::P => libc::S_IFIFO,
            LinuxDeviceType::A => {
                return Err(Error::Invalid {
                    field: format!("linux.devices {}", device.path().display()),
                    why: "type a is for cgroup rules".to_owned(),
                });
            }
        };
        let number = |name: &str, n: i64, most: u32| {
            let fits = u32::try_from(n).ok().filter(|n| *n <= most);
            fits.ok_or_else(|| Error::Invalid {
                field: format!("linux.devices {} {name}", device.path().display()),
                why: format!("{n} is no device number"),
            })
        };
        let node = (
            kind,
            device.file_mode().unwrap_or(0o666) & 0o7777,
            number("major", device.major(), MOST_MAJOR)?,
            number("minor", device.minor(), MOST_MINOR)?,
        );
        let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
        self.device(first, device.path().clone(), node, owner, false)
    }
}

fn absolute(path: &Path) -> String {
    let text = path.to_string_lossy();
    let text = if text.len() > 1 {
        text.trim_end_matches('/')
    } else {
        &text
    };
    if text.starts_with('/') {
        text.to_owned()
    } else {
        format!("/{text}")
    }
}

/// Whether a path is / in another form, links aside.
pub fn is_root(path: &str) -> bool {
    let depth = path.split('/').try_fold(0_usize, |depth, part| match part {
        "" | "." => Some(depth),
        ".." => Some(depth.saturating_sub(1)),
        _ => depth.checked_add(1),
    });
    depth == Some(0)
}

/// Mount options, sorted out.
pub struct Options {
    pub flags: MsFlags,
    pub clear: MsFlags,
    pub propagation: MsFlags,
    pub bind: bool,
    pub recursive: bool,
    pub recursive_flags: bool,
    pub data: Vec<String>,
}

/// Sorts fstab-style options into flags and what the file system itself reads.
pub fn parse_options(options: &[String], field: &str) -> Result<Options, Error> {
    let mut all = Options {
        flags: MsFlags::empty(),
        clear: MsFlags::empty(),
        propagation: MsFlags::empty(),
        bind: false,
        recursive: false,
        recursive_flags: false,
        data: Vec::new(),
    };
    for option in options {
        // `rro`, `rnosuid` … are the recursive forms of `ro`, `nosuid` ….
        let (name, recursive) = match option.strip_prefix('r') {
            Some(rest) if flag(rest).is_some() && flag(option).is_none() => (rest, true),
            _ => (option.as_str(), false),
        };
        if let Some((ms, on)) = flag(name) {
            all.flags.set(ms, on);
            all.clear.set(ms, !on);
            all.recursive_flags |= recursive;
            continue;
        }
        if let Some(flags) = propagation(option) {
            all.propagation = flags;
            continue;
        }
        match option.as_str() {
            "bind" => all.bind = true,
            "rbind" => (all.bind, all.recursive) = (true, true),
            "defaults" | "" => {}
            "idmap" | "ridmap" | "tmpcopyup" => {
                return Err(Error::Unsupported {
                    field: format!("{field} option {option}"),
                    why: "it is not done",
                });
            }
            other => all.data.push(other.to_owned()),
        }
    }
    Ok(all)
}

/// How mounts and unmounts reach a mount and leave it.
fn propagation(name: &str) -> Option<MsFlags> {
    Some(match name {
        "private" => MsFlags::MS_PRIVATE,
        "rprivate" => MsFlags::MS_PRIVATE | MsFlags::MS_REC,
        "slave" => MsFlags::MS_SLAVE,
        "rslave" => MsFlags::MS_SLAVE | MsFlags::MS_REC,
        "shared" => MsFlags::MS_SHARED,
        "rshared" => MsFlags::MS_SHARED | MsFlags::MS_REC,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        "runbindable" => MsFlags::MS_UNBINDABLE | MsFlags::MS_REC,
        _ => return None,
    })
}

/// `linux.rootfsPropagation` as [`wire::Setup::root_propagation`]. Private is what the root is anyway; said of it, it
/// doesn't hold for the mounts below, which have their own: as in runc.
pub fn root_propagation(name: Option<&str>) -> Result<u64, Error> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(0);
    };
    let flags = propagation(name).ok_or_else(|| Error::Invalid {
        field: "linux.rootfsPropagation".to_owned(),
        why: format!("{name:?} is no propagation"),
    })?;
    let is_private = flags.contains(MsFlags::MS_PRIVATE);
    Ok(if is_private { 0 } else { flags.bits() })
}

/// A flag option: its bit, and whether it sets or clears it.
fn flag(name: &str) -> Option<(MsFlags, bool)> {
    Some(match name {
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "atime" => (MsFlags::MS_NOATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "diratime" => (MsFlags::MS_NODIRATIME, false),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "silent" => (MsFlags::MS_SILENT, true),
        "loud" => (MsFlags::MS_SILENT, false),
        _ => return None,
    })
}
