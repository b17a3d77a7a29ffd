//! What the child does between the fork and Apptainer: namespaces, and the root file system's mounts.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use nix::{mount::MsFlags, sched::CloneFlags};

use crate::{
    error::Error,
    plan::{self, namespaces, rootfs},
};

/// ioctl_nsfs(2)
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Everything is allocated before the fork.
pub struct Outside {
    unshare: CloneFlags,
    join: Vec<Join>,
    mounts: Vec<RootMount>,
    rootfs: CString,
    /// Directories Apptainer mounts on.
    mount_points: [CString; 3],
    inherit: [RawFd; 2],
}

struct Join {
    namespace: OwnedFd,
    flag: CloneFlags,
    /// What to say if it can't be.
    step: String,
}

struct RootMount {
    directory: Option<CString>,
    kind: CString,
    source: CString,
    flags: libc::c_ulong,
    data: CString,
}

impl Outside {
    pub fn new(plan: &plan::Container, inherit: [RawFd; 2]) -> Result<Self, Error> {
        let join = plan
            .join
            .iter()
            .map(|namespaces::Joined { path, flag, field }| {
                Ok(Join {
                    namespace: open_namespace(field, path, *flag)?,
                    flag: *flag,
                    step: format!("{field}: join {}", path.display()),
                })
            })
            .collect::<Result<_, Error>>()?;
        let mounts = plan
            .rootfs_mounts
            .iter()
            .map(root_mount)
            .collect::<Result<_, Error>>()?;
        let inside = |name: &str| c_string(&plan.rootfs.join(name).to_string_lossy());
        Ok(Self {
            unshare: plan.unshare,
            join,
            mounts,
            rootfs: c_string(&plan.rootfs.to_string_lossy())?,
            mount_points: [inside("proc")?, inside("sys")?, inside("dev")?],
            inherit,
        })
    }

    /// Runs in the forked child: system calls only.
    pub fn run(&self) -> std::io::Result<()> {
        self.namespaces()?;
        for mount in &self.mounts {
            self.mount(mount)?;
        }
        for path in &self.mount_points {
            // SAFETY: a valid string. An existing or a read-only one shows later, in Apptainer's words.
            unsafe { libc::mkdir(path.as_ptr(), 0o755) };
        }
        for join in &self.join {
            step(&join.step, nix::sched::setns(&join.namespace, join.flag))?;
        }
        // SAFETY: plain system calls on valid arguments.
        unsafe {
            for fd in self.inherit {
                libc::fcntl(fd, libc::F_SETFD, 0);
            }
            libc::chdir(c"/".as_ptr());
        }
        Ok(())
    }

    fn namespaces(&self) -> std::io::Result<()> {
        step("make namespaces", nix::sched::unshare(self.unshare))?;
        // Mounts of the container must not show outside; an unmount outside must still reach here.
        let flags = libc::MS_REC | libc::MS_SLAVE;
        let null = std::ptr::null();
        // SAFETY: the target is a valid string, the other pointers may be null.
        let result = unsafe { libc::mount(null, c"/".as_ptr(), null, flags, null.cast()) };
        step(
            "make mounts slaves",
            nix::errno::Errno::result(result).map(drop),
        )
    }

    fn mount(&self, m: &RootMount) -> std::io::Result<()> {
        let call = |flags| {
            // SAFETY: every string was made before the fork and outlives the call.
            let result = unsafe {
                libc::mount(
                    m.source.as_ptr(),
                    self.rootfs.as_ptr(),
                    m.kind.as_ptr(),
                    flags,
                    m.data.as_ptr().cast(),
                )
            };
            nix::errno::Errno::result(result).map(drop)
        };
        if let Some(directory) = &m.directory {
            // SAFETY: a valid string.
            step(
                "enter the layers' directory",
                nix::errno::Errno::result(unsafe { libc::chdir(directory.as_ptr()) }).map(drop),
            )?;
        }
        step("mount the root file system", call(m.flags))?;
        let bind = m.flags & libc::MS_BIND != 0;
        if bind && m.flags & libc::MS_RDONLY != 0 {
            let again = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
            let remounted =
                call(again | (m.flags & (libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC)))
                    .or_else(|_| call(again | libc::MS_NOSUID | libc::MS_NODEV));
            step("make the root file system read-only", remounted)?;
        }
        Ok(())
    }
}

/// Opens a namespace that `field` names. Never waits: a path may lead to a pipe.
///
/// # Errors
/// [`Error::Invalid`] if it is none, or of another kind than `flag`'s.
pub fn open_namespace(field: &str, path: &Path, flag: CloneFlags) -> Result<OwnedFd, Error> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(Error::system(format!("{field}: open {}", path.display())))?;
    // SAFETY: integers only.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind != flag.bits() {
        return Err(Error::Invalid {
            field: field.to_owned(),
            why: format!("{} is no such namespace", path.display()),
        });
    }
    Ok(file.into())
}

/// On failure names the step on stderr, as only an errno goes through a fork.
fn step(what: &str, result: nix::Result<()>) -> std::io::Result<()> {
    result.map_err(|e| {
        // SAFETY: a valid buffer.
        unsafe { libc::write(2, what.as_ptr().cast(), what.len()) };
        e.into()
    })
}

fn root_mount(m: &rootfs::Mount) -> Result<RootMount, Error> {
    Ok(RootMount {
        directory: m.directory.as_deref().map(c_string).transpose()?,
        kind: c_string(&m.kind)?,
        source: c_string(&m.source)?,
        flags: (m.flags & !MsFlags::MS_SILENT).bits(),
        data: c_string(&m.data)?,
    })
}

fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::Invalid {
        field: "rootfs".into(),
        why: "a NUL in a path or option".into(),
    })
}
