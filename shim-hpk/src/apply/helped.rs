//! Mounts of a root file system that a helper makes, such as fuse-overlayfs, whose process goes on for as long as the mount is
//! there.
//!
//! They are made beside the root file system, in the shim's own mounts, and bound to it in the container's: a mount in
//! the container's alone would be held by its own process for ever.

use std::{fs, io::ErrorKind, path::Path, process::Command};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use super::{ask::ask, programs::Programs, reaper::Reaper};
use crate::{error::Error, plan::rootfs::Helped};

/// Makes the mount in the bundle, at [`Helped::point`].
///
/// # Errors
/// If its helper isn't here, or fails.
pub async fn mount(
    helped: &Helped,
    bundle: &Path,
    programs: &Programs,
    reaper: &Reaper,
) -> Result<(), Error> {
    let helper = programs.administrators(helped.helper).ok_or_else(|| {
        Error::Precondition(format!(
            "rootfs mount of type {:?}: there is no {}",
            helped.kind, helped.helper
        ))
    })?;
    let point = Helped::point(bundle);
    let made = fs::create_dir(&point);
    made.map_err(Error::system(format!("make {}", point.display())))?;
    let mut command = Command::new(helper);
    // It starts the file system's program by its name.
    command.env("PATH", programs.search());
    command.args([&helped.source, &point.to_string_lossy().into_owned()]);
    command.args(["-t", &helped.kind]);
    for option in &helped.options {
        command.args(["-o", option]);
    }
    ask(&mut command, reaper).await.map(drop)
}

/// Undoes [`mount`], also where it was interrupted; its process ends by that. Safe to repeat.
pub fn unmount(bundle: &Path) {
    let point = Helped::point(bundle);
    match umount2(&point, MntFlags::MNT_DETACH) {
        // EINVAL: it is no mount point.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(Errno::ENOENT) => return,
        Err(errno) => log::warn!("unmount {}: {errno}", point.display()),
    }
    match fs::remove_dir(&point) {
        Err(e) if e.kind() != ErrorKind::NotFound => log::warn!("remove {}: {e}", point.display()),
        _ => {}
    }
}
