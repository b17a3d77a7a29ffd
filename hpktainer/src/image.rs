//! The image of a container, however it was named: what is run from it, and the folder that its root file system is.
//!
//! Names are those that Docker, skopeo and Apptainer take: `busybox`, `docker://…`, `docker-archive:TAR`, `oci-archive:TAR`,
//! `oci:DIR` (these three with `:TAG` behind or not), the path of a SIF or of a root file system's folder (with a `/` in front, `./` or `../`, or ending in `.sif`), and
//! what Apptainer pulls (`library://`, `oras://`, `shub://`, `https://`).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use hpk_images::process_defaults::{ProcessDefaults, for_container};
use hpk_images::sif::{self, Squashfs};
use hpk_images::source::local::{Local, OpenError};
use hpk_images::source::place::Place;
use hpk_images::{Image, ImageConfiguration, Mounter, PullPolicy, Reference, Store};
use tokio::process::Command;

use crate::bars::Bars;
use crate::config;
use crate::container::{self, Places};

/// How an image was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// As it was given.
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Registry(Reference),
    /// A tar or layout with images, to be taken into the store, and perhaps which.
    Archive(String),
    /// A SIF, or a folder.
    Path(PathBuf),
    /// Apptainer makes a SIF of it.
    ByApptainer,
}

/// What begins the name of a tar or layout.
pub const ARCHIVES: [&str; 3] = ["docker-archive:", "oci-archive:", "oci:"];

/// Transports of skopeo's that would pass for names of a registry's images with a tag.
const NOT_TAKEN: [&str; 2] = ["containers-storage:", "docker-daemon:"];

/// What Apptainer pulls by protocols of its own.
const BY_APPTAINER: [&str; 5] = ["library://", "oras://", "shub://", "https://", "http://"];

impl std::str::FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let starts = |list: &[&str]| list.iter().any(|prefix| text.starts_with(prefix));
        let archive = ARCHIVES.iter().find_map(|form| text.strip_prefix(form));
        if let Some(foreign) = NOT_TAKEN.iter().find(|form| text.starts_with(**form)) {
            return Err(format!("{text}: no images are taken from {foreign}"));
        }
        let kind = if let Some(place) = archive {
            Kind::Archive(place.to_owned())
        } else if starts(&BY_APPTAINER) {
            Kind::ByApptainer
        } else if starts(&["/", "./", "../"]) || (text.ends_with(".sif") && !text.contains("://")) {
            Kind::Path(text.into())
        } else {
            let reference = text.parse::<Reference>();
            Kind::Registry(reference.map_err(|e| e.to_string())?)
        };
        Ok(Self {
            text: text.to_owned(),
            kind,
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// An image that is here.
#[derive(Debug, Clone)]
pub enum Root {
    /// In the store: may be removed from it unless it is claimed.
    Stored(Box<Image>),
    /// A SIF, mounted where it lies.
    Sif(Squashfs),
    /// A folder, never written to.
    Folder(PathBuf),
}

/// Gets the image; a SIF that Apptainer makes goes into the container's own folder.
pub async fn get(
    store: &Store,
    name: &Name,
    policy: PullPolicy,
    quiet: bool,
    places: &Places,
) -> anyhow::Result<Root> {
    match &name.kind {
        Kind::Registry(reference) => {
            let image = pull(store, reference, policy, quiet).await?;
            Ok(Root::Stored(Box::new(image)))
        }
        Kind::Archive(place) => {
            let image = only_image(store, Place::find(place), quiet).await?;
            Ok(Root::Stored(Box::new(image)))
        }
        Kind::Path(path) => {
            let root = at(path)?;
            let (transport, path) = match &root {
                Root::Folder(path) => ("dir", path),
                Root::Sif(sif) => ("sif", &sif.path),
                Root::Stored(_) => return Ok(root),
            };
            let scopes = path.ancestors().map(|path| path.display().to_string());
            store.admit(&name.text, transport, scopes.collect()).await?;
            Ok(root)
        }
        Kind::ByApptainer if policy == PullPolicy::Never => {
            bail!("{name} is not here, and --pull is never")
        }
        Kind::ByApptainer => {
            let (transport, scopes) = url_scopes(&name.text);
            store.admit(&name.text, transport, scopes).await?;
            let file = places.made_sif();
            pull_by_apptainer(&name.text, &file, quiet).await?;
            Ok(Root::Sif(sif::find(&file)?))
        }
    }
}

/// The scheme as the policy's transport, and as scopes the rest and all that encloses it.
fn url_scopes(url: &str) -> (&str, Vec<String>) {
    let (transport, rest) = url.split_once("://").unwrap_or((url, ""));
    let parents = std::iter::successors(Some(rest), |path| Some(path.rsplit_once('/')?.0));
    (transport, parents.map(str::to_owned).collect())
}

/// The image of a tar or layout that is meant, taken into the store.
async fn only_image(store: &Store, place: Place, quiet: bool) -> anyhow::Result<Image> {
    let seen = place.clone();
    // Which it is has to be clear before anything is taken.
    let looked = tokio::task::spawn_blocking(move || {
        seen.image(&Local::open(&seen.path)?)?;
        Ok::<_, OpenError>(())
    });
    looked.await.context("reading the image")??;
    let mut images = import(store, &place, None, quiet).await?;
    let image = images.pop();
    image.with_context(|| format!("no image in {}", place.path.display()))
}

fn at(path: &Path) -> anyhow::Result<Root> {
    // Without links and "..", since the policy goes by folders.
    let found = path.canonicalize();
    let path = found.with_context(|| format!("looking at the image {}", path.display()))?;
    let found = std::fs::metadata(&path);
    let found = found.with_context(|| format!("looking at the image {}", path.display()))?;
    if found.is_file() {
        return Ok(Root::Sif(sif::find(&path)?));
    }
    // A bare name of a folder would be one of a registry: this is meant, and is checked for what a root must have.
    let usual = ["bin", "etc", "usr"];
    match usual.iter().any(|name| path.join(name).is_dir()) {
        true => Ok(Root::Folder(path)),
        false => bail!(
            "{} is no root file system: none of {} is in it",
            path.display(),
            usual.join(", ")
        ),
    }
}

/// The image of a registry, pulled with progress where it must be.
pub async fn pull(
    store: &Store,
    reference: &Reference,
    policy: PullPolicy,
    quiet: bool,
) -> anyhow::Result<Image> {
    let bars = Bars::new(quiet);
    let image = store
        .resolve_and_ensure(reference, policy, None, &bars)
        .await;
    bars.finish();
    image.with_context(|| format!("no image {reference}"))
}

/// All images of a tar or layout that are meant, into the store; a single one by another `name`.
pub async fn import(
    store: &Store,
    place: &Place,
    name: Option<&Reference>,
    quiet: bool,
) -> anyhow::Result<Vec<Image>> {
    let bars = Bars::new(quiet);
    let images = store.import(place, name, &bars).await;
    bars.finish();
    images.with_context(|| format!("no image from {}", place.path.display()))
}

/// By the apptainer of HPK_APPTAINER, or of PATH, which keeps what it has downloaded in a cache of its own.
async fn pull_by_apptainer(url: &str, file: &Path, quiet: bool) -> anyhow::Result<()> {
    let program = std::env::var_os("HPK_APPTAINER").filter(|value| !value.is_empty());
    let program = program.unwrap_or_else(|| "apptainer".into());
    if let Some(folder) = file.parent() {
        container::make_dir(folder)?;
    }
    let mut command = Command::new(&program);
    if quiet {
        command.arg("--quiet");
    }
    command.arg("pull").arg("--force");
    if config::in_bubble() {
        // Its cache would be in memory there, and go with the bubble.
        command.arg("--disable-cache");
    }
    let logins = config::store()?.logins;
    if let Some(logins) = logins.iter().find(|file| file.exists())
        && url.starts_with("oras://")
    {
        command.arg("--authfile").arg(logins);
    }
    command.arg(file).arg(url);
    // What it says is progress and errors; this program's own output is the container's.
    command.stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::from(std::io::stderr()));
    let program = Path::new(&program).display();
    let status = command.kill_on_drop(true).status().await;
    match status.with_context(|| format!("starting {program} to pull {url}"))? {
        status if status.success() => Ok(()),
        status => bail!("{program} could not pull {url}: {status}"),
    }
}

/// What a SIF's or folder's root runs where nothing else is said: Apptainer's script, which sets the image's environment and
/// begins its program, or with words the program with those; else a shell.
fn of_apptainer(lower: &Path) -> ImageConfiguration {
    const SCRIPTS: [&str; 2] = ["/.singularity.d/actions/run", "/.singularity.d/runscript"];
    let below = |script: &&&str| lower.join(script.trim_start_matches('/')).exists();
    let program = SCRIPTS.iter().find(below);
    let mut config = ImageConfiguration::default();
    let mut inner = oci_spec::image::Config::default();
    match program {
        Some(program) => inner.set_entrypoint(Some(vec![(*program).to_owned()])),
        None => inner.set_cmd(Some(vec!["/bin/sh".to_owned()])),
    };
    config.set_config(Some(inner));
    config
}

impl Root {
    /// The folder with the root file system, mounted where it must be.
    pub async fn lower(&self, mounter: &Mounter) -> anyhow::Result<PathBuf> {
        Ok(match self {
            Self::Stored(image) => mounter.ensure(image).await?,
            Self::Sif(sif) => mounter.ensure_sif(sif).await?,
            Self::Folder(path) => path.clone(),
        })
    }

    /// What to run, merged with the command line.
    pub fn defaults(
        &self,
        lower: &Path,
        entrypoint: Option<&[String]>,
        command: &[String],
    ) -> anyhow::Result<ProcessDefaults> {
        let config = match self {
            Self::Stored(image) => &image.config,
            Self::Sif(_) | Self::Folder(_) => &of_apptainer(lower),
        };
        Ok(for_container(config, entrypoint, Some(command))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_docker_skopeo_and_apptainer() {
        let kind = |text: &str| text.parse::<Name>().unwrap().kind;
        let path = |text: &str| Kind::Path(text.into());
        assert_eq!(kind("busybox"), Kind::Registry("busybox".parse().unwrap()));
        assert_eq!(
            kind("docker://r:5/a"),
            Kind::Registry("r:5/a".parse().unwrap())
        );
        for archive in ["docker-archive:/a.tar", "oci-archive:/a.tar", "oci:/a.tar"] {
            assert_eq!(kind(archive), Kind::Archive("/a.tar".into()));
        }
        for file in ["/a/b.sif", "./sandbox", "../x", "b.sif"] {
            assert_eq!(kind(file), path(file));
        }
        for url in ["library://a/b:1", "oras://r/a:1", "https://h/a.sif"] {
            assert_eq!(kind(url), Kind::ByApptainer);
        }
        let fault = "docker-daemon:busybox".parse::<Name>().unwrap_err();
        assert!(fault.contains("docker-daemon:"), "{fault}");
        let fault = "Not An Image".parse::<Name>().unwrap_err();
        assert!(fault.contains("Not An Image"), "{fault}");
    }

    #[test]
    fn a_folder_that_is_no_root_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let fault = at(dir.path()).unwrap_err().to_string();
        assert!(fault.contains(dir.path().to_str().unwrap()), "{fault}");
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        assert!(matches!(at(dir.path()), Ok(Root::Folder(_))));
        assert!(at("/no/such".as_ref()).is_err());
    }

    #[test]
    fn apptainers_script_is_run_where_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::Folder(dir.path().to_owned());
        let run = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            root.defaults(dir.path(), None, &words).unwrap().args
        };
        assert_eq!(run(&[]), ["/bin/sh"]);
        assert_eq!(run(&["ls", "-l"]), ["ls", "-l"]);
        std::fs::create_dir(dir.path().join(".singularity.d")).unwrap();
        std::fs::write(dir.path().join(".singularity.d/runscript"), "").unwrap();
        assert_eq!(run(&["-v"]), ["/.singularity.d/runscript", "-v"]);
    }

    #[test]
    fn a_url_has_what_encloses_it_as_scopes() {
        let (transport, scopes) = url_scopes("oras://r:5/a/b:1");
        assert_eq!(
            (transport, &scopes[..]),
            (
                "oras",
                &["r:5/a/b:1", "r:5/a", "r:5"].map(str::to_owned)[..]
            )
        );
    }
}
