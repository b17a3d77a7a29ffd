//! Images from local tars and layouts, named there.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::files::listed;
use super::resolve::{choose, judge, refused};
use super::{Image, Store, blocking};
use crate::policy::{Origin, Policy};
use crate::source::Source as _;
use crate::source::local::{Local, LocalImage};
use crate::{Progress, Reference};

impl Store {
    /// Takes all images of a tar (`docker save`, OCI) or OCI layout folder into the store, under the names they have
    /// there, or `name` where there is only one.
    pub async fn import(
        &self,
        path: &Path,
        name: Option<&Reference>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>, Error> {
        let given = path.to_owned();
        let (path, transport, images) = blocking(move || {
            let path = real(&given)?;
            let local = Local::open(&path)?;
            Ok((path, local.transport(), local.images()?))
        })
        .await?;
        let path = &path;
        let origin = Origin::Local { transport, path };
        let policy = self.policy().await?;
        let alone = images.len() == 1;
        let mut done = Vec::new();
        for image in images {
            let names = match name.filter(|_| alone) {
                Some(name) => vec![name.clone()],
                None => image.names.clone(),
            };
            if names.is_empty() {
                return Err(Error::NoName {
                    path: path.to_owned(),
                });
            }
            for name in names {
                let taken = self.take(&policy, origin, &image, &name, progress);
                done.push(taken.await?);
            }
        }
        Ok(done)
    }

    async fn take(
        &self,
        policy: &Policy,
        origin: Origin<'_>,
        image: &LocalImage,
        name: &Reference,
        progress: &dyn Progress,
    ) -> Result<Image, Error> {
        if let Some(wanted) = judge(policy, origin, name)? {
            return Err(refused(name, wanted.unmet()));
        }
        // Who asks for the name later takes what lies in the store for the registry's.
        let free =
            name.host() == "localhost" || matches!(policy.judge(Origin::Registry, name), Ok(None));
        if !free {
            return Err(Error::RestrictedName {
                reference: name.to_string(),
            });
        }
        let top = image.manifest(None).await.map_err(|source| Error::Blob {
            name: name.to_string(),
            source: Box::new(source),
        })?;
        let resolved = choose(name, Box::new(image.clone()), top).await?;
        resolved.announce(progress);
        let record = self.ensure(&resolved, &name.to_string(), progress).await?;
        self.remember(name, &resolved).await?;
        self.make_room(&record.digest).await;
        self.image(name.clone(), record)
    }

    /// The developer's own image of that name, if there is one.
    pub(super) async fn find_dev_image(
        &self,
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<Option<Image>, Error> {
        let Some(dir) = self.dev_images.clone().filter(|d| d.is_dir()) else {
            return Ok(None);
        };
        let wanted = reference.clone();
        let found = blocking(move || {
            for path in listed(&dir)? {
                if path.extension().is_some_and(|e| e == "tar") {
                    let path = real(&path)?;
                    let local = Local::open(&path)?;
                    let mut images = local.images()?.into_iter();
                    if let Some(image) = images.find(|i| i.names.contains(&wanted)) {
                        return Ok(Some((local.transport(), path, image)));
                    }
                }
            }
            Ok(None)
        })
        .await?;
        match found {
            Some((transport, path, image)) => {
                let path = &path;
                let origin = Origin::Local { transport, path };
                let policy = self.policy().await?;
                let taken = self.take(&policy, origin, &image, reference, progress);
                taken.await.map(Some)
            }
            None => Ok(None),
        }
    }
}

/// The path that scopes of the policy mean: neither `..` nor a symbolic link leads around them.
fn real(path: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(path).map_err(|e| Error::io("finding", path, e))
}
