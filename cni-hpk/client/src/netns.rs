//! Pinned network namespaces.
//!
//! A namespace lives on as a bind mount over an empty file. It is made on a
//! thread that ends, so that no thread of the caller is left in it. `/run/netns`
//! in a bubble is no mount of its own, and binding a namespace onto a file of
//! Apptainer's root is refused (EINVAL); a tmpfs is mounted there first.
//!
//! These functions block for some milliseconds: in async code run them by
//! `spawn_blocking`.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// What failed, on which namespace.
#[derive(Debug, thiserror::Error)]
#[error("network namespace {path}: {operation}")]
pub struct Error {
    pub path: PathBuf,
    pub operation: &'static str,
    #[source]
    pub source: io::Error,
}

/// Makes a network namespace and pins it at `path` (`/run/netns/NAME`), with
/// `lo` up and unprivileged ping allowed. One already pinned there is kept as
/// it is: a caller that died between making and recording it tries again.
pub fn create(path: &Path) -> Result<(), Error> {
    let fail = |operation: &'static str| {
        move |source: io::Error| Error {
            path: path.to_owned(),
            operation,
            source,
        }
    };
    if is_pinned(path).map_err(fail("look at it"))? {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(fail("make its folder"))?;
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(fail("make its file"))?;
    let target = path.to_owned();
    let folder = folder.to_owned();
    let made = std::thread::spawn(move || make_and_pin(&target, &folder))
        .join()
        .unwrap_or_else(|_| Err(("run its thread", io::Error::other("panicked"))));
    made.map_err(|(operation, source)| {
        // Leave no file that looks like a namespace.
        let _ = fs::remove_file(path);
        fail(operation)(source)
    })
}

/// Unpins the namespace and removes its file. It ends when its last process
/// does. One that isn't there is fine.
pub fn remove(path: &Path) -> Result<(), Error> {
    let fail = |operation: &'static str| {
        move |source: io::Error| Error {
            path: path.to_owned(),
            operation,
            source,
        }
    };
    // Detach also what was mounted there twice.
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(fail("unmount it")(errno.into())),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(fail("remove its file")(error))
        }
        _ => Ok(()),
    }
}

/// Whether a network namespace is pinned at `path`.
pub fn is_pinned(path: &Path) -> io::Result<bool> {
    match nix::sys::statfs::statfs(path) {
        Ok(stat) => Ok(stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

type Failure = (&'static str, io::Error);

/// Runs on a thread that ends: it leaves its network namespace for good.
fn make_and_pin(path: &Path, folder: &Path) -> Result<(), Failure> {
    let at = |operation: &'static str| move |errno: Errno| (operation, io::Error::from(errno));
    unshare(CloneFlags::CLONE_NEWNET).map_err(at("unshare"))?;
    loopback_up().map_err(|error| ("bring lo up", error))?;
    allow_ping().map_err(|error| ("open ping_group_range", error))?;
    let own = Path::new("/proc/thread-self/ns/net");
    let bind = || {
        mount(
            Some(own),
            path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
    };
    match bind() {
        Ok(()) => return Ok(()),
        Err(Errno::EINVAL) => mount_tmpfs(folder)?,
        // Another caller has just mounted its tmpfs over our file.
        Err(Errno::ENOENT) => {}
        Err(errno) => return Err(at("pin it")(errno)),
    }
    fs::File::create(path).map_err(|error| ("make its file", error))?;
    bind().map_err(at("pin it"))
}

/// A tmpfs over `folder`, unless one is there already: another caller may
/// have been first, and what it pinned must not be hidden.
fn mount_tmpfs(folder: &Path) -> Result<(), Failure> {
    let look = |error: io::Error| ("look at its folder", error);
    let parent = folder.parent().unwrap_or(Path::new("/"));
    let lock = fs::File::open(parent).map_err(look)?;
    lock.lock().map_err(|error| ("lock its folder", error))?;
    let is_mount =
        fs::metadata(folder).map_err(look)?.dev() != fs::metadata(parent).map_err(look)?.dev();
    if is_mount {
        return Ok(());
    }
    mount(
        Some("tmpfs"),
        folder,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0755,size=1m"),
    )
    .map_err(|errno| ("mount a tmpfs on its folder", errno.into()))
}

/// `ip link set lo up` without a program: one RTM_NEWLINK (rtnetlink(7)).
fn loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
    const LOOPBACK_INDEX: i32 = 1;
    const IFF_UP: u32 = 1;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence, port
    message.extend_from_slice(&[0; 4]); // family, padding, device type
    message.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes()); // flags
    message.extend_from_slice(&IFF_UP.to_ne_bytes()); // which of them change
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0u8; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // nlmsgerr: the header, then a negated errno, 0 for success.
    let code = answer[..length]
        .get(16..20)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
        .ok_or_else(|| io::Error::other("short netlink answer"))?;
    match code {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

/// New namespaces let nobody ping. The range's ends must be groups that this
/// user namespace knows (icmp(7)). Where /proc/sys is read-only it stays as it
/// is: a program with CAP_NET_RAW can ping all the same.
fn allow_ping() -> io::Result<()> {
    let map = fs::read_to_string("/proc/self/gid_map")?;
    let Some((first, last)) = ping_groups(&map) else {
        return Ok(());
    };
    let range = format!("{first} {last}");
    match fs::write("/proc/sys/net/ipv4/ping_group_range", range) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// The longest run of groups, from 0 or 1, that the map has. The kernel
/// compares groups as the initial namespace numbers them, so these have to
/// ascend along the run.
fn ping_groups(map: &str) -> Option<(u64, u64)> {
    /// The kernel's limit for the range (GID_T_MAX).
    const MAX: u64 = i32::MAX as u64;
    let mut extents: Vec<[u64; 3]> = map
        .lines()
        .filter_map(|line| {
            let numbers = line.split_whitespace().map(|word| word.parse().ok());
            numbers.collect::<Option<Vec<u64>>>()?.try_into().ok()
        })
        .collect();
    extents.sort_unstable();
    let run_from = |start: usize| {
        let first = extents.get(start).filter(|extent| extent[0] <= 1)?;
        let mut last = first;
        for next in &extents[start + 1..] {
            if next[0] != last[0] + last[2] || next[1] < last[1] {
                break;
            }
            last = next;
        }
        Some((first[0], (last[0] + last[2] - 1).min(MAX)))
    };
    // From group 0, unless that is one lonely extent out of order.
    let runs = [run_from(0), run_from(1)];
    let longest = runs
        .into_iter()
        .flatten()
        .max_by_key(|(first, last)| last - first);
    longest.filter(|(first, last)| first <= last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ping_range_is_the_groups_that_are_mapped() {
        assert_eq!(ping_groups("0 0 4294967295\n"), Some((0, 2147483647)));
        assert_eq!(ping_groups("0 1000 1\n1 100000 65536\n"), Some((0, 65536)));
        assert_eq!(ping_groups("0 1000 1\n"), Some((0, 0)));
        assert_eq!(ping_groups("5 100000 65536\n"), None);
    }

    #[test]
    fn the_ping_range_leaves_out_a_root_group_above_the_others() {
        assert_eq!(
            ping_groups("0 300000 1\n1 100000 65536\n"),
            Some((1, 65536))
        );
    }
}
