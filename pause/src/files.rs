//! The container's file system: mounts in the spec's order, /dev, sysctls, masks.
//!
//! This runs inside the container, before any program of its own does; every path is the
//! container's, so no symbolic link in it can lead out.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt, symlink},
    },
    path::Path,
};

use hpk_pause::{
    sys::{self, attr},
    wire::{Device, Mount, Setup},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::{Gid, Uid, chown},
};

use crate::{
    error::{Context, Error},
    first::{Descriptors, Shim},
    process::Program,
};

/// Links every container has.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Does it all, in the order runc does; makes the working directory while the root is writable.
pub fn set_up(setup: &Setup, cwd: &str, fds: &Descriptors, shim: &Shim) -> Result<(), Error> {
    if setup.new_cgroup_namespace {
        unshare(CloneFlags::CLONE_NEWCGROUP).context(|| "make a cgroup namespace".into())?;
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .context(|| "make mounts private".into())?;
    for m in &setup.mounts {
        attach(m, fds)?;
    }
    if setup.populate_dev {
        populate_dev(&setup.devices, fds, shim)?;
    }
    if setup.loopback_up {
        sys::bring_loopback_up().context(|| "bring lo up".into())?;
    }
    if let Some(name) = &setup.hostname {
        nix::unistd::sethostname(name).context(|| format!("set host name {name:?}"))?;
    }
    if let Some(name) = &setup.domainname {
        fs::write("/proc/sys/kernel/domainname", name)
            .context(|| format!("set domain name {name:?}"))?;
    }
    for (name, value) in &setup.sysctls {
        // Slashes stand for dots within a name (an interface eth0.1), as in sysctl(8).
        let path: String = name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect();
        fs::write(format!("/proc/sys/{path}"), value)
            .context(|| format!("set sysctl {name} to {value:?}"))?;
    }
    for path in &setup.readonly_paths {
        make_readonly(path)?;
    }
    for path in &setup.masked_paths {
        mask(path)?;
    }
    if !cwd.is_empty() {
        fs::create_dir_all(cwd).context(|| format!("make working directory {cwd}"))?;
    }
    if !setup.keep_sys {
        detach("/sys")?;
    }
    if !setup.keep_proc {
        detach("/proc")?;
    }
    if setup.root_propagation != 0 {
        set_propagation("/", setup.root_propagation)?;
    }
    if setup.readonly_root {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | root_flags()?;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
            .context(|| "make the root read-only".into())?;
    }
    Ok(())
}

/// Binds the terminal on /dev/console.
pub fn bind_console(program: &Program) -> Result<(), Error> {
    let Some(number) = program.terminal else {
        return Ok(());
    };
    ensure_file("/dev/console")?;
    let from = format!("/dev/pts/{number}");
    mount(
        Some(from.as_str()),
        "/dev/console",
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .context(|| format!("bind {from} on /dev/console"))
}

/// What a remount of / must repeat, or it would be refused or weaken it.
fn root_flags() -> Result<MsFlags, Error> {
    use nix::sys::statvfs::{FsFlags, statvfs};
    let have = statvfs("/").context(|| "look at the root".into())?.flags();
    let mut flags = MsFlags::empty();
    for (on, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        flags.set(flag, have.contains(on));
    }
    Ok(flags)
}

fn attach(m: &Mount, fds: &Descriptors) -> Result<(), Error> {
    match m.tree {
        Some(index) => attach_tree(m, fds.get(index)?)?,
        None => match m.kind.as_str() {
            "proc" if m.data.is_empty() => attach_kernel_view(m, c"proc")?,
            "sysfs" => attach_kernel_view(m, c"sysfs")?,
            _ => new_filesystem(m)?,
        },
    }
    if m.propagation != 0 {
        set_propagation(&m.destination, m.propagation)?;
    }
    Ok(())
}

fn set_propagation(path: &str, flags: u64) -> Result<(), Error> {
    let flags = MsFlags::from_bits_retain(flags as _);
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .context(|| format!("set propagation of {path}"))
}

fn is_unsupported(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::ENOSYS)
}

/// Attaches a bind's tree; its options are set before anybody can see it.
fn attach_tree(m: &Mount, tree: BorrowedFd<'_>) -> Result<(), Error> {
    let step = || format!("bind {} on {}", m.source, m.destination);
    let is_dir = nix::sys::stat::fstat(tree)
        .map(|s| SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
        .context(step)?;
    if is_dir {
        ensure_dir(&m.destination)?
    } else {
        ensure_file(&m.destination)?
    }
    let (set, clear) = (attributes(m.flags), attributes(m.clear_flags));
    let mut remount = false;
    if set | clear != 0 {
        match sys::set_mount_attributes(tree, set, clear & !set, 0, m.recursive_flags) {
            Err(e) if is_unsupported(&e) && !m.recursive_flags => remount = true,
            other => other.context(step)?,
        }
    }
    sys::move_mount(tree, &c_string(&m.destination)?).context(step)?;
    if remount {
        // Before Linux 5.12: a moment later, and naming all flags anew.
        let flags =
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::from_bits_retain(m.flags as _);
        mount(
            None::<&str>,
            m.destination.as_str(),
            None::<&str>,
            flags,
            None::<&str>,
        )
        .context(step)?;
    }
    Ok(())
}

/// A fresh proc or sysfs, of this PID or network namespace, in place of Apptainer's (which may be
/// the bubble's). Order matters: a user namespace may mount one only while it sees another.
fn attach_kernel_view(m: &Mount, kind: &CStr) -> Result<(), Error> {
    let step = || format!("mount {} on {}", m.kind, m.destination);
    ensure_dir(&m.destination)?;
    let fresh = sys::new_mount(kind, attributes(m.flags)).context(step)?;
    detach(&m.destination)?;
    sys::move_mount(fresh.as_fd(), &c_string(&m.destination)?).context(step)
}

fn new_filesystem(m: &Mount) -> Result<(), Error> {
    let step = || format!("mount {} on {}", m.kind, m.destination);
    ensure_dir(&m.destination)?;
    let flags = MsFlags::from_bits_retain(m.flags as _);
    let try_with = |data: &str| {
        mount(
            Some(m.source.as_str()),
            m.destination.as_str(),
            Some(m.kind.as_str()),
            flags,
            (!data.is_empty()).then_some(data),
        )
    };
    match try_with(&m.data) {
        // gid=5 (tty) isn't mapped in a user namespace without a subgid range.
        Err(nix::errno::Errno::EINVAL) if m.kind == "devpts" => {
            let kept: Vec<&str> = m
                .data
                .split(',')
                .filter(|o| !o.starts_with("gid="))
                .collect();
            try_with(&kept.join(",")).context(step)
        }
        other => other.context(step),
    }
}

/// MS_… flags as mount attributes.
fn attributes(flags: u64) -> u64 {
    let flags = MsFlags::from_bits_retain(flags as _);
    let pairs = [
        (MsFlags::MS_RDONLY, attr::RDONLY),
        (MsFlags::MS_NOSUID, attr::NOSUID),
        (MsFlags::MS_NODEV, attr::NODEV),
        (MsFlags::MS_NOEXEC, attr::NOEXEC),
        (MsFlags::MS_NODIRATIME, attr::NODIRATIME),
    ];
    pairs
        .iter()
        .filter(|(ms, _)| flags.contains(*ms))
        .fold(0, |all, (_, a)| all | a)
}

fn populate_dev(devices: &[Device], fds: &Descriptors, shim: &Shim) -> Result<(), Error> {
    for device in devices {
        match make_device(device, fds) {
            Err(e) if device.optional => shim.warn(&e.to_string()),
            other => other?,
        }
    }
    for (target, link) in LINKS {
        match symlink(target, link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(e).context(|| format!("link {link}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn make_device(device: &Device, fds: &Descriptors) -> Result<(), Error> {
    let step = || format!("make device {}", device.path);
    if let Some(index) = device.tree {
        ensure_file(&device.path)?;
        return sys::move_mount(fds.get(index)?, &c_string(&device.path)?).context(step);
    }
    if let Some(parent) = Path::new(&device.path).parent() {
        fs::create_dir_all(parent).context(step)?;
    }
    let kind = SFlag::from_bits_truncate(device.kind);
    let number = makedev(device.major.into(), device.minor.into());
    mknod(
        device.path.as_str(),
        kind,
        Mode::from_bits_truncate(device.mode),
        number,
    )
    .context(step)?;
    // mknod applies the umask.
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(device.mode);
    fs::set_permissions(&device.path, mode).context(step)?;
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chown(device.path.as_str(), Some(uid), Some(gid)).context(step)
}

fn make_readonly(path: &str) -> Result<(), Error> {
    let step = || format!("make {path} read-only");
    let tree = match sys::open_tree(&c_string(path)?, true) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.context(step)?,
    };
    match sys::set_mount_attributes(tree.as_fd(), attr::RDONLY, 0, 0, true) {
        Err(e) if is_unsupported(&e) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(path), path, None::<&str>, bind, None::<&str>).context(step)?;
            let flags = bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            return mount(None::<&str>, path, None::<&str>, flags, None::<&str>).context(step);
        }
        other => other.context(step)?,
    }
    sys::move_mount(tree.as_fd(), &c_string(path)?).context(step)
}

/// Hides a path: a file behind /dev/null, a directory behind an empty one.
fn mask(path: &str) -> Result<(), Error> {
    let step = || format!("mask {path}");
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).context(step),
    };
    if meta.is_dir() {
        let data = Some("nr_blocks=1,nr_inodes=1");
        return mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, data).context(step);
    }
    if !fs::metadata("/dev/null").is_ok_and(|m| m.file_type().is_char_device()) {
        return Err(Error::plain(format!(
            "mask {path}: the container has no /dev/null"
        )));
    }
    mount(
        Some("/dev/null"),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .context(step)
}

/// Takes away a mount of Apptainer's, if it is one.
fn detach(path: &str) -> Result<(), Error> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        other => other.context(|| format!("unmount {path}")),
    }
}

fn ensure_dir(path: &str) -> Result<(), Error> {
    fs::create_dir_all(path).context(|| format!("make mount point {path}"))
}

fn ensure_file(path: &str) -> Result<(), Error> {
    make_file(Path::new(path)).context(|| format!("make mount point {path}"))
}

/// Makes an empty file, unless something is there; also where a link leads to nothing yet, as many an image's
/// /etc/resolv.conf does.
fn make_file(path: &Path) -> io::Result<()> {
    /// As the kernel follows (path_resolution(7)).
    const LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        if fs::metadata(&path).is_ok() {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
        fs::create_dir_all(&parent)?;
        if let Ok(target) = fs::read_link(&path) {
            path = parent.join(target);
            continue;
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o644);
        return options.open(&path).map(drop);
    }
    Err(nix::errno::Errno::ELOOP.into())
}

fn c_string(path: &str) -> Result<CString, Error> {
    CString::new(path).map_err(|_| Error::plain(format!("path {path:?} has a NUL in it")))
}
