//! Which image of a tar or layout is meant: `PATH[:TAG]`, as skopeo and Apptainer have it.

use std::path::{Path, PathBuf};

use super::local::{Local, LocalImage, OpenError};
use crate::Reference;

/// A tar or layout, and perhaps what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file or folder.
    pub path: PathBuf,
    /// A tag, a whole name, or `@POSITION`; without it, all or the only one.
    pub wanted: Option<String>,
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            wanted: None,
        }
    }
}

impl Place {
    /// Reads `PATH[:TAG]`. What is there as a whole is a path, whatever colons are in it; else the path ends before the
    /// first colon that follows something which is there, or before the first of all.
    pub fn find(text: &str) -> Self {
        let colons = text.match_indices(':').map(|(at, _)| at);
        let there = |at: &usize| Path::new(&text[..*at]).exists();
        let ends = match Path::new(text).exists() {
            true => None,
            false => colons.clone().find(there).or(colons.clone().next()),
        };
        let (path, wanted) = match ends {
            Some(at) => (&text[..at], Some(text[at + 1..].to_owned())),
            None => (text, None),
        };
        Self {
            path: path.into(),
            wanted: wanted.filter(|wanted| !wanted.is_empty()),
        }
    }

    /// The images that are meant: all, or the one of that tag.
    ///
    /// # Errors
    /// Where there is none of that tag, or more than one: with the tags that there are.
    pub fn images(&self, local: &Local) -> Result<Vec<LocalImage>, OpenError> {
        let images = local.images()?;
        let Some(wanted) = &self.wanted else {
            return Ok(images);
        };
        let there = || tags(&images);
        let mut found = matching(&images, wanted);
        match found.len() {
            1 => Ok(found),
            0 => Err(OpenError::NoSuchImage {
                path: self.path.clone(),
                wanted: wanted.clone(),
                there: there(),
            }),
            // The same image, listed twice.
            _ if found.iter().all(|image| image.is_same(&found[0])) => {
                found.truncate(1);
                Ok(found)
            }
            _ => Err(OpenError::Ambiguous {
                path: self.path.clone(),
                wanted: Some(wanted.clone()),
                there: there(),
            }),
        }
    }

    /// The image that is meant.
    ///
    /// # Errors
    /// As `images`; and where no tag is given and there are several.
    pub fn image(&self, local: &Local) -> Result<LocalImage, OpenError> {
        let mut images = self.images(local)?;
        match (images.pop(), images.is_empty()) {
            (Some(image), true) => Ok(image),
            (None, _) => Err(OpenError::NoImage {
                path: self.path.clone(),
            }),
            (Some(last), false) => {
                images.push(last);
                Err(OpenError::Ambiguous {
                    path: self.path.clone(),
                    wanted: None,
                    there: tags(&images),
                })
            }
        }
    }
}

/// Those that are called so there; else those whose name has that tag. Each has only the name that it was found by.
fn matching(images: &[LocalImage], wanted: &str) -> Vec<LocalImage> {
    if let Some(position) = wanted.strip_prefix('@') {
        let position = position.parse::<usize>().ok();
        return position
            .and_then(|position| images.get(position))
            .cloned()
            .into_iter()
            .collect();
    }
    let whole: Option<Reference> = wanted.parse().ok();
    let called = |image: &LocalImage| {
        let named = whole.iter().filter(|whole| image.names.contains(whole));
        let names: Vec<Reference> = named.cloned().collect();
        let is_label = image.label.as_deref() == Some(wanted);
        match (is_label, names.is_empty()) {
            (_, false) => Some(image.with_names(names)),
            (true, true) => Some(image.clone()),
            (false, true) => None,
        }
    };
    let found: Vec<LocalImage> = images.iter().filter_map(called).collect();
    if !found.is_empty() {
        return found;
    }
    let tagged = |image: &LocalImage| {
        let named = image.names.iter().filter(|it| it.tag() == Some(wanted));
        let alone = |name: &Reference| image.with_names(vec![name.clone()]);
        named.map(alone).collect::<Vec<_>>()
    };
    images.iter().flat_map(tagged).collect()
}

/// What each can be asked for by.
fn tags(images: &[LocalImage]) -> Vec<String> {
    let called = |(position, image): (usize, &LocalImage)| match &image.label {
        Some(label) => vec![label.clone()],
        None if image.names.is_empty() => vec![format!("@{position}")],
        None => image.names.iter().map(ToString::to_string).collect(),
    };
    images.iter().enumerate().flat_map(called).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::layer::hex;

    /// A layout whose images have these annotations; manifests differ by their position.
    fn layout(dir: &Path, annotations: &[&str]) -> Local {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let entry = |(position, annotations): (usize, &&str)| {
            let manifest = format!("{{\"position\":{position}}}");
            let digest = hex(&Sha256::digest(&manifest));
            fs::write(blobs.join(&digest), manifest).unwrap();
            format!(r#"{{"digest":"sha256:{digest}","annotations":{{{annotations}}}}}"#)
        };
        let entries: Vec<String> = annotations.iter().enumerate().map(entry).collect();
        let index = format!(r#"{{"manifests":[{}]}}"#, entries.join(","));
        fs::write(dir.join("index.json"), index).unwrap();
        Local::open(dir).unwrap()
    }

    fn place(path: &Path, wanted: &str) -> Place {
        Place {
            path: path.to_owned(),
            wanted: Some(wanted.to_owned()),
        }
    }

    #[test]
    fn a_tag_follows_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a:b");
        fs::create_dir(&odd).unwrap();
        let found = |text: &str| {
            let Place { path, wanted } = Place::find(text);
            (path, wanted.unwrap_or_default())
        };
        let text = odd.to_str().unwrap();
        assert_eq!(found(text), (odd.clone(), String::new()));
        let named = found(&format!("{text}:docker.io/library/x:1"));
        assert_eq!(named, (odd.clone(), "docker.io/library/x:1".to_owned()));
        assert_eq!(found(&format!("{text}:")), (odd, String::new()));
        assert_eq!(found("/no/a:1:2"), ("/no/a".into(), "1:2".to_owned()));
        assert_eq!(found("/no/a"), ("/no/a".into(), String::new()));
    }

    #[test]
    fn an_image_is_found_by_its_label_its_name_its_tag_or_its_position() {
        const LABEL: &str = "\"org.opencontainers.image.ref.name\"";
        let dir = tempfile::tempdir().unwrap();
        let labels = [
            format!("{LABEL}:\"1.36\""),
            format!("{LABEL}:\"docker.io/library/busybox:1.37\""),
            String::new(),
        ];
        let local = layout(dir.path(), &labels.each_ref().map(String::as_str));
        let all = local.images().unwrap();
        for (wanted, position) in [
            ("1.36", 0),
            ("docker.io/library/busybox:1.37", 1),
            ("busybox:1.37", 1),
            ("1.37", 1),
            ("@2", 2),
        ] {
            let found = place(dir.path(), wanted).image(&local).unwrap();
            assert!(found.is_same(&all[position]), "{wanted}");
        }
        let fault = |place: Place| place.image(&local).unwrap_err().to_string();
        let there = "1.36, docker.io/library/busybox:1.37, @2";
        let said = fault(place(dir.path(), "1.38"));
        assert!(said.contains("\"1.38\"") && said.contains(there), "{said}");
        let said = fault(dir.path().into());
        assert!(said.contains(there), "{said}");
        assert!(fault(place(dir.path(), "@3")).contains(there));
    }

    #[test]
    fn one_tag_of_two_repositories_is_ambiguous_and_the_same_image_twice_is_not() {
        const NAME: &str = "\"io.containerd.image.name\"";
        let dir = tempfile::tempdir().unwrap();
        let names = [
            format!("{NAME}:\"quay.io/a:1\""),
            format!("{NAME}:\"quay.io/b:1\""),
        ];
        let local = layout(dir.path(), &names.each_ref().map(String::as_str));
        let fault = place(dir.path(), "1").image(&local).unwrap_err();
        assert!(matches!(fault, OpenError::Ambiguous { .. }), "{fault}");
        assert!(fault.to_string().contains("quay.io/a:1, quay.io/b:1"));
        let chosen = place(dir.path(), "quay.io/b:1").image(&local).unwrap();
        assert_eq!(chosen.names[0].repository(), "b");

        let index = fs::read_to_string(dir.path().join("index.json")).unwrap();
        let entry = index
            .split_once('[')
            .unwrap()
            .1
            .split("},{")
            .next()
            .unwrap();
        let twice = format!(r#"{{"manifests":[{entry}}},{entry}}}]}}"#);
        fs::write(dir.path().join("index.json"), twice).unwrap();
        let local = Local::open(dir.path()).unwrap();
        assert!(place(dir.path(), "1").image(&local).is_ok());
    }
}
