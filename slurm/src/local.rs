//! Node-local folders, `hpk-UID-CLUSTER-RANDOM`: made, written down, found again, removed.
//!
//! Guarantees: another user of the host can't take a folder's name beforehand, since its end is
//! random and making it fails where something stands. It is written down in the cluster's folder
//! (`local/HOST`) before it is made, so that it is found whatever is killed in between, also by a
//! job whose TMPDIR is another; what bears a cluster's name here is found without that too. Only
//! folders of this user are ever removed, and a link is none.
//!
//! Assumes that the folder they are made in lets nobody rename what is another's: `doctor` refuses
//! one that all may write and that isn't sticky.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::OFlag;
use nix::unistd::{Uid, getuid};

use crate::cluster::Folder;
use crate::{attempts, files, userns};

/// Bytes of a name's random end, which has two digits for each.
const RANDOM: usize = 8;

fn prefix() -> String {
    format!("hpk-{}-", getuid())
}

/// The cluster whose folder bears this name; None for what is no name of such a folder.
fn cluster_of(name: &str) -> Option<&str> {
    let (id, random) = name.strip_prefix(&prefix())?.rsplit_once('-')?;
    let is_random = random.len() == 2 * RANDOM && random.bytes().all(|b| b.is_ascii_hexdigit());
    is_random.then_some(id)
}

/// A folder that is ours, held open: a path through it is short (a socket's has room for 107 bytes
/// only), and leads to this folder whatever becomes of its name.
#[derive(Debug)]
pub struct OpenFolder(File);

impl OpenFolder {
    /// None where there is nothing, or a link, or no folder, or another user's.
    fn open(path: &Path, owner: Uid) -> io::Result<Option<Self>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(path);
        let folder = match opened {
            Ok(folder) => folder,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => return Ok(None),
                _ => return Err(error),
            },
        };
        let is_owners = folder.metadata()?.uid() == owner.as_raw();
        Ok(is_owners.then_some(Self(folder)))
    }

    /// A folder that must be ours.
    pub fn of(path: &Path) -> Result<Self> {
        Self::open(path, getuid())
            .with_context(|| format!("opening {}", path.display()))?
            .with_context(|| format!("{} is no folder of this user's", path.display()))
    }

    pub fn join(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}

/// Makes a folder of that cluster, 0700; `write_down` gets its path before it is made.
fn make_in(parent: &Path, id: &str, write_down: impl Fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let random: String = files::random::<RANDOM>()?
        .map(|byte| format!("{byte:02x}"))
        .concat();
    let path = parent.join(format!("{}{id}-{random}", prefix()));
    write_down(&path)?;
    DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .with_context(|| format!("making the directory {}", path.display()))?;
    let mode = OpenFolder::of(&path)?.0.metadata();
    let mode = mode.with_context(|| format!("looking at {}", path.display()))?;
    if mode.mode() & 0o077 != 0 {
        // An access list of the folder above can do this.
        bail!("{} is open to others as soon as made", path.display());
    }
    Ok(path)
}

/// Makes the folder of the cluster's bubble on this host, and writes it down.
pub fn make(folder: &Folder, id: &str, host: &str, parent: &Path) -> Result<PathBuf> {
    let record = folder.local_record(host);
    make_in(parent, id, |path| {
        let text = path
            .to_str()
            .with_context(|| format!("{} is not UTF-8", path.display()))?;
        files::make_private_dir(record.parent().unwrap_or(folder.path()))?;
        files::write_private(&record, format!("{text}\n").as_bytes())
    })
}

/// Another folder of the cluster on this host, for a moment only: goes when this is dropped.
#[derive(Debug)]
pub struct Passing(PathBuf);

impl Passing {
    pub fn make(id: &str, parent: &Path) -> Result<Self> {
        make_in(parent, id, |_| Ok(())).map(Self)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            eprintln!("hpk: {error:#}");
        }
    }
}

/// Removes a folder if it is ours; fine if there is none.
pub fn remove(path: &Path) -> Result<()> {
    let own = OpenFolder::open(path, getuid());
    match own.with_context(|| format!("looking at {}", path.display()))? {
        Some(_) => userns::remove::tree(path),
        None => Ok(()),
    }
}

/// Removes the folder that the cluster's bubble has or had on this host, as it is written down.
pub fn remove_recorded(folder: &Folder, host: &str) -> Result<()> {
    let record = folder.local_record(host);
    let text = match std::fs::read_to_string(&record) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", record.display())),
    };
    let path = Path::new(text.trim_end());
    let name = path.file_name().and_then(|name| name.to_str());
    if name.and_then(cluster_of).is_none() || !path.is_absolute() {
        bail!("{}: {text:?} is no folder of a bubble", record.display());
    }
    remove(path)?;
    std::fs::remove_file(&record).with_context(|| format!("removing {}", record.display()))
}

/// What bears a cluster's name in `parent`, as cluster and path, whoever's it is.
pub fn list(parent: &Path) -> Result<Vec<(String, PathBuf)>> {
    let names = files::names(parent)?;
    let of_clusters = names
        .iter()
        .filter_map(|name| Some((cluster_of(name)?.to_owned(), parent.join(name))));
    Ok(of_clusters.collect())
}

/// Removes all that the cluster has on this host.
pub fn clean(folder: &Folder, id: &str, host: &str, parent: &Path) -> Result<()> {
    let listed = list(parent)?.into_iter();
    let paths = listed.filter_map(|(cluster, path)| (cluster == id).then_some(path));
    attempts::all(
        paths
            .map(|path| remove(&path))
            .chain([remove_recorded(folder, host)]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A home and a node-local file system.
    fn places() -> (tempfile::TempDir, Folder, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::of(&root.path().join("home"), "7");
        let parent = root.path().join("tmp");
        fs::create_dir(&parent).unwrap();
        (root, folder, parent)
    }

    #[test]
    fn a_folder_is_0700_and_never_one_that_was_there() {
        let (_root, folder, parent) = places();
        let one = make(&folder, "7", "n1", &parent).unwrap();
        let two = make(&folder, "7", "n1", &parent).unwrap();
        assert_ne!(one, two);
        assert_eq!(one.metadata().unwrap().mode() & 0o777, 0o700);
        let record = files::read(&folder.local_record("n1")).unwrap();
        assert_eq!(record.trim(), two.to_str().unwrap());
    }

    #[test]
    fn what_stands_under_the_name_is_not_taken() {
        let (_root, _, parent) = places();
        // Whoever could know the name would be here before it is made.
        let taken = make_in(&parent, "7", |path| Ok(fs::create_dir(path)?));
        assert!(format!("{:#}", taken.unwrap_err()).contains("exists"));
        let linked = make_in(&parent, "7", |path| Ok(symlink("/", path)?));
        assert!(format!("{:#}", linked.unwrap_err()).contains("exists"));
    }

    #[test]
    fn a_folder_is_found_by_its_name_and_by_its_record() {
        let (root, folder, parent) = places();
        let listed = make_in(&parent, "7", |_| Ok(())).unwrap();
        let elsewhere = root.path().join("scratch");
        fs::create_dir(&elsewhere).unwrap();
        let recorded = make(&folder, "7", "n1", &elsewhere).unwrap();
        let others = make_in(&parent, "7-a", |_| Ok(())).unwrap();
        fs::create_dir(recorded.join("run")).unwrap();
        clean(&folder, "7", "n1", &parent).unwrap();
        assert!(!listed.exists() && !recorded.exists() && others.exists());
        assert!(!folder.local_record("n1").exists());
        clean(&folder, "7", "n1", &parent).unwrap();
    }

    #[test]
    fn a_record_that_leads_elsewhere_removes_nothing() {
        let (root, folder, _) = places();
        let kept = root.path().join("kept");
        fs::create_dir(&kept).unwrap();
        let record = folder.local_record("n1");
        files::make_private_dir(record.parent().unwrap()).unwrap();
        files::write_private(&record, kept.to_str().unwrap().as_bytes()).unwrap();
        let error = remove_recorded(&folder, "n1").unwrap_err();
        assert!(error.to_string().contains("kept"), "{error}");
        assert!(kept.exists());
    }

    #[test]
    fn another_users_folder_and_a_link_are_not_ours() {
        let (_root, _, parent) = places();
        let path = make_in(&parent, "7", |_| Ok(())).unwrap();
        let stranger = Uid::from_raw(getuid().as_raw() + 1);
        assert!(OpenFolder::open(&path, getuid()).unwrap().is_some());
        assert!(OpenFolder::open(&path, stranger).unwrap().is_none());
        let link = parent.join("link");
        symlink(&path, &link).unwrap();
        assert!(OpenFolder::open(&link, getuid()).unwrap().is_none());
        remove(&link).unwrap();
        assert!(path.exists() && link.is_symlink());
    }

    #[test]
    fn a_name_tells_its_cluster() {
        let uid = getuid();
        let of = |end: &str| cluster_of(&format!("hpk-{uid}-{end}")).map(str::to_owned);
        assert_eq!(of("7-0123456789abcdef").as_deref(), Some("7"));
        assert_eq!(of("a-b-0123456789abcdef").as_deref(), Some("a-b"));
        assert_eq!(of("7"), None);
        assert_eq!(of("images"), None);
        assert_eq!(cluster_of("hpk-x-7-0123456789abcdef"), None);
    }
}
