//! A bubble of the user's on this host.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use hpk_images::private::local_parent;
use nix::unistd::Uid;

/// The relay's folder in a bubble's node-local one.
pub const RELAY: &str = "cni/relay";
const SOCKET: &str = "relay.sock";

/// The node-local folder of the newest bubble that runs here, or HPK_BUBBLE's.
pub fn find() -> anyhow::Result<Option<PathBuf>> {
    if let Some(folder) = std::env::var_os("HPK_BUBBLE").map(PathBuf::from) {
        if !serves(&folder) {
            bail!(
                "HPK_BUBBLE={}: no bubble's relay is in there",
                folder.display()
            );
        }
        return Ok(Some(folder));
    }
    // A job's TMPDIR may be its own, and not where the bubble's job looked.
    let parents = [local_parent(), PathBuf::from("/tmp")];
    for parent in &parents {
        if let Some(folder) = newest(parent, Uid::current().as_raw())? {
            return Ok(Some(folder));
        }
    }
    Ok(None)
}

fn newest(parent: &Path, uid: u32) -> anyhow::Result<Option<PathBuf>> {
    let begins = format!("hpk-{uid}-");
    let fail = || format!("looking for a bubble in {}", parent.display());
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.with_context(fail)?,
    };
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in entries {
        let entry = entry.with_context(fail)?;
        if !entry.file_name().to_string_lossy().starts_with(&begins) {
            continue;
        }
        let path = entry.path();
        // Anybody may make a folder of that name.
        let ours =
            fs::symlink_metadata(&path).is_ok_and(|folder| folder.is_dir() && folder.uid() == uid);
        if ours && serves(&path) {
            let made = fs::metadata(path.join(RELAY).join(SOCKET)).and_then(|file| file.modified());
            found.push((made.unwrap_or(SystemTime::UNIX_EPOCH), path));
        }
    }
    Ok(found.into_iter().max().map(|(_, path)| path))
}

/// Whether the folder has a relay's socket. One that is being started anew has it, too.
fn serves(folder: &Path) -> bool {
    fs::symlink_metadata(folder.join(RELAY).join(SOCKET))
        .is_ok_and(|file| file.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_newest_folder_of_ours_with_a_relay_is_the_bubble() {
        let parent = tempfile::tempdir().unwrap();
        let uid = Uid::current().as_raw();
        assert_eq!(newest(parent.path(), uid).unwrap(), None);
        assert_eq!(newest(&parent.path().join("none"), uid).unwrap(), None);
        let make = |name: &str| {
            let relay = parent.path().join(name).join(RELAY);
            fs::create_dir_all(&relay).unwrap();
            UnixListener::bind(relay.join(SOCKET)).unwrap()
        };
        let _other = make(&format!("hpk-{}-9", uid + 1));
        fs::create_dir_all(parent.path().join(format!("hpk-{uid}-images"))).unwrap();
        assert_eq!(newest(parent.path(), uid).unwrap(), None);
        let _ours = make(&format!("hpk-{uid}-12-ab"));
        let found = newest(parent.path(), uid).unwrap().unwrap();
        assert!(found.ends_with(format!("hpk-{uid}-12-ab")));
        // Of another's, whatever its name.
        assert_eq!(newest(parent.path(), uid + 1).unwrap(), None);
    }
}
