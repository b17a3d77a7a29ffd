//! Which image it is: the first that is there of what the user names, the newest of a developer's, a file beside the
//! programs or in `~/.hpk/images`, the one that the release pins in a registry.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail, ensure};
use hpk_images::{Reference, Store};

use super::{Found, NAME, SIF};
use crate::{files, settings};

/// What names an image, before all else.
const SETTING: &str = "HPK_IMAGE";
/// The file beside the programs with the release's image in a registry, by digest; `scripts/pin` writes it.
const PIN: &str = "hpk-bubble.ref";
/// What a registry's image is named by in the setting, as Docker, skopeo and Apptainer do.
const DOCKER: &str = "docker://";

/// Where it may be.
#[derive(Debug)]
pub struct Places {
    named: Option<OsString>,
    dev: bool,
    /// The programs' folder.
    programs: PathBuf,
    /// `~/.hpk/images`.
    images: PathBuf,
}

impl Places {
    /// As the environment says; `own` is this program's file.
    pub fn from_env(own: &Path, hpk_home: &Path) -> Self {
        Self {
            named: std::env::var_os(SETTING).filter(|value| !value.is_empty()),
            dev: settings::is_dev(),
            programs: own.parent().unwrap_or(Path::new("/")).to_owned(),
            images: hpk_home.join("images"),
        }
    }

    /// Looks, and asks no registry. The error says where it looked, and what to do.
    pub async fn find(&self) -> Result<Found> {
        if let Some(named) = &self.named {
            return find_named(Path::new(named));
        }
        let mut sifs = Vec::new();
        for place in [&self.programs, &self.images] {
            let path = place.join(SIF);
            // An empty one is in the tarball without an image: it takes the place of an older tarball's.
            if path.metadata().is_ok_and(|file| file.len() > 0) {
                sifs.push((written(&path)?, path));
            }
        }
        if self.dev {
            let tar = Store::newest(&self.images, is_bubble).await?;
            let newest = sifs.iter().max_by_key(|(written, _)| *written);
            match (tar, newest) {
                (Some(tar), Some((written, path))) if *written > tar.written => {
                    return Ok(Found::File(path.clone()));
                }
                (Some(tar), _) => return Ok(Found::Tar(Box::new(tar))),
                (None, _) => {}
            }
        }
        if let Some((_, path)) = sifs.into_iter().next() {
            return Ok(Found::File(path));
        }
        match self.pinned()? {
            Some(found) => Ok(found),
            None => bail!("{}", self.absence()),
        }
    }

    fn pinned(&self) -> Result<Option<Found>> {
        let path = self.programs.join(PIN);
        if !path.exists() {
            return Ok(None);
        }
        let text = files::read(&path)?;
        let reference: Reference = text
            .trim()
            .parse()
            .with_context(|| format!("reading {}", path.display()))?;
        ensure!(
            reference.digest().is_some(),
            "{} names {reference} without a digest, by which alone an image is pinned",
            path.display()
        );
        Ok(Some(Found::Registry {
            reference,
            named_by: path.display().to_string(),
        }))
    }

    /// Where nothing was, and what to do.
    fn absence(&self) -> String {
        let (programs, images) = (self.programs.display(), self.images.display());
        let tars = match self.dev {
            true => format!("no tar in {images} has an image {NAME}"),
            false => format!("tars in {images} count with HPK_DEV=1 alone"),
        };
        format!(
            "the bubble's image is nowhere: {SETTING} is not set, there is neither {programs}/{SIF} nor {images}/{SIF}, \
             {tars}, and {programs}/{PIN} pins none in a registry; unpack a release's tarball (`make dist`) as ~/hpk, \
             build one with `make sif`, or name a SIF or {DOCKER}REGISTRY/{NAME}@sha256:… in {SETTING}"
        )
    }
}

fn find_named(named: &Path) -> Result<Found> {
    let text = named.to_string_lossy();
    if text.starts_with(DOCKER) {
        let reference = text
            .parse()
            .with_context(|| format!("reading {SETTING}={text}"))?;
        return Ok(Found::Registry {
            reference,
            named_by: SETTING.to_owned(),
        });
    }
    ensure!(
        named.exists(),
        "the bubble's image {SETTING}={text} does not exist; a registry's is named {DOCKER}…"
    );
    let is_empty = named
        .metadata()
        .is_ok_and(|it| it.is_file() && it.len() == 0);
    ensure!(
        !is_empty,
        "the bubble's image {SETTING}={text} is empty, as that of a tarball without one is; leave {SETTING} unset, or name another"
    );
    // Another program's folder may be another.
    let path = std::path::absolute(named).with_context(|| format!("resolving {SETTING}={text}"))?;
    Ok(Found::File(path))
}

/// Tars have other images beside it; one without any name in it is known by its own.
fn is_bubble(tar: &Path, names: &[Reference]) -> bool {
    let last = |name: &Reference| name.repository().rsplit('/').next() == Some(NAME);
    let stem = tar.file_stem().unwrap_or_default().to_string_lossy();
    names.iter().any(last) || (names.is_empty() && stem.starts_with(NAME))
}

fn written(path: &Path) -> Result<SystemTime> {
    let written = path.metadata().and_then(|metadata| metadata.modified());
    written.with_context(|| format!("looking at {}", path.display()))
}

#[cfg(test)]
mod tests;
