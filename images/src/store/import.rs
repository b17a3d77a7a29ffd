//! Images from local tars and layouts, named there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::Error;
use super::files::listed;
use super::resolve::{choose, judge, may_name, refused};
use super::{Image, Store, blocking};
use crate::policy::{Origin, Policy};
use crate::source::Source as _;
use crate::source::local::{Local, LocalImage};
use crate::source::place::Place;
use crate::{Progress, Reference};

impl Store {
    /// Takes all images of a tar (`docker save`, OCI) or OCI layout folder into the store, or the one that is wanted, under
    /// the names they have there, or a single one by `name`. One without a name there is `localhost/FILE:TAG`. Of several,
    /// those for other machines are passed over, if there is one for this.
    pub async fn import(
        &self,
        place: &Place,
        name: Option<&Reference>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>, Error> {
        let (given, one) = (place.clone(), name.is_some());
        let (path, transport, images) = blocking(move || {
            let path = real(&given.path)?;
            let local = Local::open(&path)?;
            let images = match one {
                true => vec![given.image(&local)?],
                false => given.images(&local)?,
            };
            Ok((path, local.transport(), images))
        })
        .await?;
        let policy = self.policy().await?;
        let alone = images.len() == 1;
        let (mut done, mut foreign) = (Vec::new(), None);
        for image in images {
            let names = match name {
                Some(name) => vec![name.clone()],
                None if image.names.is_empty() => {
                    vec![own_name(&path, image.label.as_deref(), alone)?]
                }
                None => image.names.clone(),
            };
            for name in names {
                let origin = Origin::Local {
                    transport,
                    path: &path,
                    tag: image.label.as_deref(),
                };
                match self.take(&policy, origin, &image, &name, progress).await {
                    // Of several, those for this machine.
                    Err(e) if !alone && e.is_foreign() => foreign = Some(e),
                    taken => done.push(taken?),
                }
            }
        }
        match foreign {
            Some(foreign) if done.is_empty() => Err(foreign),
            _ => Ok(done),
        }
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
        if !may_name(name, &resolved.top, &resolved.digest) {
            return Err(Error::OthersDigest {
                reference: name.to_string(),
                digest: resolved.digest,
            });
        }
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
        let Some(dir) = self.dev_images.clone() else {
            return Ok(None);
        };
        let wanted = reference.clone();
        let found = Self::newest(&dir, move |_, names| names.contains(&wanted)).await?;
        match found {
            Some(found) => {
                let taken = self.take_newest(&found, reference, progress);
                taken.await.map(Some)
            }
            None => Ok(None),
        }
    }

    /// Of the tars in the folder `dir` the one written last that has an image that `wanted` takes, by the tar's path and
    /// the image's names in it. None without such a folder.
    pub async fn newest(
        dir: &Path,
        wanted: impl Fn(&Path, &[Reference]) -> bool + Send + 'static,
    ) -> Result<Option<Newest>, Error> {
        let dir = dir.to_owned();
        blocking(move || {
            for (written, path) in tars(&dir)? {
                let path = real(&path)?;
                let local = Local::open(&path)?;
                let mut images = local.images()?.into_iter();
                if let Some(image) = images.find(|image| wanted(&path, &image.names)) {
                    return Ok(Some(Newest {
                        transport: local.transport(),
                        path,
                        written,
                        image,
                    }));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Takes that image into the store under `name`.
    pub async fn take_newest(
        &self,
        newest: &Newest,
        name: &Reference,
        progress: &dyn Progress,
    ) -> Result<Image, Error> {
        let policy = self.policy().await?;
        let (origin, image) = (newest.origin(), &newest.image);
        self.take(&policy, origin, image, name, progress).await
    }
}

/// An image in a tar that was found by its age.
#[derive(Debug, Clone)]
pub struct Newest {
    /// The tar.
    pub path: PathBuf,
    /// When it was written last.
    pub written: SystemTime,
    transport: &'static str,
    image: LocalImage,
}

impl Newest {
    /// Of the image, or of its index: `sha256:…`.
    pub fn digest(&self) -> String {
        self.image.digest()
    }

    fn origin(&self) -> Origin<'_> {
        Origin::Local {
            transport: self.transport,
            path: &self.path,
            tag: self.image.label.as_deref(),
        }
    }
}

/// The tars of a folder, the one written last first.
fn tars(dir: &Path) -> Result<Vec<(SystemTime, PathBuf)>, Error> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut tars = Vec::new();
    for path in listed(dir)? {
        if path.extension().is_some_and(|e| e == "tar") {
            match fs::metadata(&path).and_then(|metadata| metadata.modified()) {
                Ok(written) => tars.push((written, path)),
                // Removed meanwhile, or a link that leads nowhere.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("looking at", &path, e)),
            }
        }
    }
    tars.sort_by(|a, b| b.cmp(a));
    Ok(tars)
}

/// The name of an image that has none: its file's, and its tag.
fn own_name(path: &Path, tag: Option<&str>, alone: bool) -> Result<Reference, Error> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let stem: String = stem.to_lowercase().chars().map(plain).collect();
    let stem = match stem.trim_matches('-') {
        "" => "image",
        stem => stem,
    };
    let tagged = tag.and_then(|tag| format!("localhost/{stem}:{tag}").parse().ok());
    let bare = || format!("localhost/{stem}").parse().ok();
    tagged
        .or_else(|| bare().filter(|_| alone))
        .ok_or_else(|| Error::NoName {
            path: path.to_owned(),
        })
}

/// The path that scopes of the policy mean: neither `..` nor a symbolic link leads around them.
fn real(path: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(path).map_err(|e| Error::io("finding", path, e))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// In docker's form, without layers.
    fn write(path: &Path, name: &str, hour: u64) {
        let list = serde_json::json!([{"Config": "c.json", "RepoTags": [name], "Layers": []}]);
        let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
        for (member, text) in [("manifest.json", list.to_string()), ("c.json", "{}".into())] {
            let mut header = tar::Header::new_ustar();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, member, text.as_bytes())
                .unwrap();
        }
        let file = tar.into_inner().unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(3600 * hour);
        file.set_modified(at).unwrap();
    }

    #[tokio::test]
    async fn of_several_tars_with_an_image_the_one_written_last_counts() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write(&at("a.tar"), "localhost/app:1", 2);
        write(&at("b.tar"), "localhost/app:1", 3);
        write(&at("c.tar"), "localhost/app:1", 1);
        write(&at("d.tar"), "localhost/other:1", 4);
        write(&at("e.tar.new"), "localhost/app:1", 5);
        std::os::unix::fs::symlink("gone", at("link.tar")).unwrap();
        let app: Reference = "localhost/app:1".parse().unwrap();
        let wanted = move |_: &Path, names: &[Reference]| names.contains(&app);
        let found = Store::newest(dir.path(), wanted.clone()).await.unwrap();
        assert!(found.unwrap().path.ends_with("b.tar"));
        let nowhere = Store::newest(&at("nowhere"), wanted.clone()).await.unwrap();
        assert!(nowhere.is_none());
        // One that can't be read is named rather than passed over: it may be the one that is meant.
        fs::write(at("f.tar"), "no tar").unwrap();
        let error = Store::newest(dir.path(), wanted).await.unwrap_err();
        let error = crate::source::chain(&error);
        assert!(error.contains("f.tar"), "{error}");
    }

    #[test]
    fn an_image_without_a_name_has_that_of_its_file() {
        let name = |path: &str, tag: Option<&str>, alone| {
            own_name(path.as_ref(), tag, alone).map(|name| name.to_string())
        };
        let alone = |path: &str, tag| name(path, tag, true).unwrap();
        assert_eq!(alone("/d/_.tar", None), "localhost/image:latest");
        assert_eq!(
            alone("/d/My_App.v1.tar", None),
            "localhost/my-app-v1:latest"
        );
        assert_eq!(alone("/d/layout", Some("1.37")), "localhost/layout:1.37");
        assert_eq!(
            alone("/d/layout", Some("no tag!")),
            "localhost/layout:latest"
        );
        assert!(name("/d/layout", Some("1"), false).is_ok());
        assert!(matches!(
            name("/d/layout", None, false),
            Err(Error::NoName { .. })
        ));
    }
}
