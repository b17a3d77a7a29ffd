//! Images from local tars and layouts, named there.

use std::path::Path;

use super::error::Error;
use super::files::listed;
use super::resolve::choose;
use super::{Image, Store, blocking};
use crate::policy::Origin;
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
        let opened = path.to_owned();
        let (transport, images) = blocking(move || {
            let local = Local::open(&opened)?;
            Ok((local.transport(), local.images()?))
        })
        .await?;
        let absolute = std::path::absolute(path).map_err(|e| Error::io("finding", path, e))?;
        let origin = Origin::Local {
            transport,
            path: &absolute,
        };
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
                done.push(self.take(origin, &image, &name, progress).await?);
            }
        }
        Ok(done)
    }

    async fn take(
        &self,
        origin: Origin<'_>,
        image: &LocalImage,
        name: &Reference,
        progress: &dyn Progress,
    ) -> Result<Image, Error> {
        let top = image.manifest(None).await.map_err(|source| Error::Blob {
            name: name.to_string(),
            source: Box::new(source),
        })?;
        let resolved = choose(name, Box::new(image.clone()), top).await?;
        self.judge(origin, name, &resolved).await?;
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
                let taken = self.take(origin, &image, reference, progress).await;
                taken.map(Some)
            }
            None => Ok(None),
        }
    }
}
