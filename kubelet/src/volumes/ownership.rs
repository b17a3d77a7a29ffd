//! fsGroup: the group that owns a volume's files. Source: Kubernetes, pkg/volume/volume_linux.go.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

/// Gives all below `root` to `group`, readable (and, unless `read_only`, writable) by it; folders
/// also get the set-group-id bit, so that new files belong to the group.
pub fn give_to_group(root: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(root)?;
    lchown(root, None, Some(group))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let mut mode = meta.permissions().mode() & 0o7777;
    mode |= if read_only { 0o440 } else { 0o660 };
    if meta.is_dir() {
        mode |= 0o2110;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(mode))?;
    if meta.is_dir() {
        for entry in fs::read_dir(root)? {
            give_to_group(&entry?.path(), group, read_only)?;
        }
    }
    Ok(())
}
