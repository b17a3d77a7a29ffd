//! What a developer's older tars have left: their images in the store, and a SIF in `~/.hpk/images` that is older than
//! the tar in use. What a running cluster started from stays.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use hpk_images::{Reference, Store};

use super::{NAME, SIF};
use crate::cluster::Folder;
use crate::files;

/// How the tags of tars' images in the store begin.
pub const TAG: &str = "dev-";

/// Removes it; `digest`: the image in use, whose tar was `written` then.
pub async fn remove(
    store: &Store,
    digest: &str,
    written: SystemTime,
    hpk_home: &Path,
) -> Result<()> {
    for image in store.list().await? {
        if is_of_a_tar(&image.reference)
            && image.digest != digest
            && store.remove_unused(&image.digest).await?
        {
            println!("hpk: removed the image of an older tar, {}", image.digest);
        }
    }
    let sif = hpk_home.join("images").join(SIF);
    let Ok(metadata) = std::fs::metadata(&sif) else {
        return Ok(());
    };
    // Another may have come while the tar's image was being made.
    let is_older = metadata.modified().is_ok_and(|at| at < written);
    if is_older && !is_in_use(&metadata, hpk_home)? {
        std::fs::remove_file(&sif).with_context(|| format!("removing {}", sif.display()))?;
        println!("hpk: removed {}, which was older", sif.display());
    }
    Ok(())
}

fn is_of_a_tar(name: &Reference) -> bool {
    let is_ours = name.registry() == "localhost" && name.repository() == NAME;
    is_ours && name.tag().is_some_and(|tag| tag.starts_with(TAG))
}

/// By a cluster that has its secrets still: an ended one's have been removed.
fn is_in_use(image: &Metadata, hpk_home: &Path) -> Result<bool> {
    // By whatever path it was named.
    let file = |of: &Metadata| (of.dev(), of.ino());
    for id in files::names(&hpk_home.join("clusters"))? {
        let folder = Folder::of(hpk_home, &id);
        if folder.pki().exists()
            && std::fs::metadata(folder.read()?.image).is_ok_and(|used| file(&used) == file(image))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_of_tars_are_stale() {
        let of = |name: &str| is_of_a_tar(&name.parse().unwrap());
        assert!(of("localhost/hpk-bubble:dev-0123"));
        for other in [
            "localhost/hpk-bubble:0.1.0",
            "localhost/mine/hpk-bubble:dev-0123",
            "docker.io/user/hpk-bubble:dev-0123",
        ] {
            assert!(!of(other), "{other}");
        }
    }
}
