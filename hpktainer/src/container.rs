//! What is remembered of a container, and finding it again.
//!
//! `ROOT/ID/container.json` is written before anything is made, so that whatever a killed hpktainer left can be found and
//! removed by `hpktainer rm -f`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::publish::Publish;

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// 12 hex digits.
    pub id: String,
    /// Given, or the id.
    pub name: String,
    /// The image as it was named.
    pub image: String,
    /// What runs.
    pub command: Vec<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// Signal that asks it to stop.
    pub stop_signal: u32,
    /// Address on the pod network, once it has one.
    pub ip: Option<String>,
    /// Ports of the host that lead to it.
    #[serde(default)]
    pub ports: Vec<Publish>,
    /// The CNI conf it was attached by.
    pub network: Option<PathBuf>,
    /// CNI's cache with it.
    #[serde(default)]
    pub cni_cache: Option<PathBuf>,
    /// Whether its output is kept (`run -d`).
    pub logged: bool,
    /// Whether it is forgotten when it has ended.
    #[serde(default)]
    pub auto_remove: bool,
    /// Exit code, once it has ended.
    pub exit: Option<u32>,
    /// Whether it has ended and nothing of it is left but this and its log.
    #[serde(default)]
    pub cleaned_up: bool,
}

/// A container's folders.
#[derive(Debug, Clone)]
pub struct Places {
    /// Node-local disk: record, writable layer, log.
    pub root: PathBuf,
    /// Bundle, pipes, the image's mount.
    pub run: PathBuf,
    /// The pinned network namespace.
    pub netns: PathBuf,
}

impl Places {
    /// Those of container `id`.
    pub fn of(config: &Config, id: &str) -> Self {
        Self {
            root: config.root.join(id),
            run: config.run.join(id),
            netns: config.netns.join(format!("hpktainer-{id}")),
        }
    }

    /// The bundle given to the shim.
    pub fn bundle(&self) -> PathBuf {
        self.run.join("bundle")
    }

    /// The container's own layer.
    pub fn upper(&self) -> PathBuf {
        self.root.join("upper")
    }

    /// The SIF that Apptainer made for it.
    pub fn made_sif(&self) -> PathBuf {
        self.root.join("image.sif")
    }

    /// The log of a detached container.
    pub fn log(&self) -> PathBuf {
        self.root.join("output.log")
    }

    /// Locked by those who follow the log, until they have seen its end.
    pub fn followers(&self) -> PathBuf {
        self.root.join("followers")
    }

    /// Makes the folders, for the owner only.
    pub fn make(&self) -> anyhow::Result<()> {
        for dir in ["upper", "work", "etc"] {
            make_dir(&self.root.join(dir))?;
        }
        // The overlay's upper is the container's `/`: any user in it must be let in.
        set_mode(&self.upper(), 0o755)?;
        make_dir(&self.bundle().join("rootfs"))
    }
}

/// 12 hex digits that nobody else has.
pub fn random_id() -> anyhow::Result<String> {
    let mut random = [0; 6];
    let read = fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random));
    read.context("reading /dev/urandom")?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn set_mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let set = fs::set_permissions(path, fs::Permissions::from_mode(mode));
    set.with_context(|| format!("setting the mode of {}", path.display()))
}

/// Makes a folder 0700, and its parents so, too.
pub fn make_dir(dir: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("making {}", dir.display()))
}

/// Removes a file; one that isn't there is fine.
pub fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file 0600, or with another mode, whole or not at all.
pub fn write_file(path: &Path, mode: u32, text: &[u8]) -> anyhow::Result<()> {
    let temp = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temp)?;
        file.write_all(text)?;
        fs::rename(&temp, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

impl Record {
    /// It has ended, and what it had is others' now.
    pub fn set_cleaned_up(&mut self, exit: u32) {
        self.exit = Some(exit);
        self.ip = None;
        self.ports.clear();
        self.cleaned_up = true;
    }

    /// Writes it down.
    pub fn save(&self, config: &Config) -> anyhow::Result<()> {
        let path = config.root.join(&self.id).join("container.json");
        write_file(&path, 0o600, &serde_json::to_vec_pretty(self)?)
    }
}

/// All containers, the newest first.
pub fn list(config: &Config) -> anyhow::Result<Vec<Record>> {
    let entries = match fs::read_dir(&config.root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("listing {}", config.root.display()))?,
    };
    let mut records: Vec<Record> = Vec::new();
    for entry in entries {
        let path = entry?.path().join("container.json");
        match fs::read(&path) {
            // Just being made or removed.
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) => {}
            read => {
                let bytes = read.with_context(|| format!("reading {}", path.display()))?;
                records.push(
                    serde_json::from_slice(&bytes)
                        .with_context(|| format!("parsing {}", path.display()))?,
                );
            }
        }
    }
    records.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    Ok(records)
}

/// Does it to each, and goes on where it fails; fails itself then, and has told why.
pub async fn each(
    all: &[String],
    mut act: impl AsyncFnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<u8> {
    let mut code = 0;
    for wanted in all {
        if let Err(error) = act(wanted).await {
            eprintln!("hpktainer: {error:#}");
            code = crate::OWN_FAILURE;
        }
    }
    Ok(code)
}

/// The container of that name, id, or beginning of an id.
pub fn find(config: &Config, wanted: &str) -> anyhow::Result<Record> {
    search(config, wanted)?.with_context(|| format!("no container {wanted:?}"))
}

/// The same, if there is one.
pub fn search(config: &Config, wanted: &str) -> anyhow::Result<Option<Record>> {
    choose(list(config)?, wanted)
}

fn choose(records: Vec<Record>, wanted: &str) -> anyhow::Result<Option<Record>> {
    let exact = records
        .iter()
        .position(|r| r.name == wanted || r.id == wanted);
    let begins = || {
        if wanted.is_empty() {
            return Ok(None);
        }
        let mut all = records
            .iter()
            .enumerate()
            .filter(|(_, r)| r.id.starts_with(wanted));
        match (all.next(), all.next()) {
            (Some((at, _)), None) => Ok(Some(at)),
            (None, _) => Ok(None),
            (Some(_), Some(_)) => bail!("more than one container's id begins with {wanted:?}"),
        }
    };
    let at = match exact {
        Some(at) => Some(at),
        None => begins()?,
    };
    Ok(at.and_then(|at| records.into_iter().nth(at)))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn record(id: &str, name: &str) -> Record {
        Record {
            id: id.into(),
            name: name.into(),
            image: "docker.io/library/busybox:latest".into(),
            command: vec!["sh".into()],
            created: 1,
            stop_signal: 15,
            ip: None,
            ports: Vec::new(),
            network: None,
            cni_cache: None,
            logged: false,
            auto_remove: false,
            exit: None,
            cleaned_up: false,
        }
    }

    #[test]
    fn names_go_before_ids_and_ids_may_be_cut_short() {
        let all = || {
            vec![
                record("aa11", "web"),
                record("aa22", "aa11x"),
                record("bb33", "bb33"),
            ]
        };
        let id = |wanted: &str| choose(all(), wanted).unwrap().map(|record| record.id);
        assert_eq!(id("web").as_deref(), Some("aa11"));
        assert_eq!(id("aa2").as_deref(), Some("aa22"));
        assert_eq!(id("b").as_deref(), Some("bb33"));
        assert_eq!((id("zz"), id("")), (None, None));
        assert!(
            choose(all(), "aa")
                .unwrap_err()
                .to_string()
                .contains("more than one")
        );
    }

    #[test]
    fn what_is_saved_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            root: dir.path().join("root"),
            ..Config::from_env()
        };
        assert_eq!(list(&config).unwrap(), []);
        let saved = record("aa11", "web");
        make_dir(&config.root.join("aa11")).unwrap();
        make_dir(&config.root.join("empty")).unwrap();
        saved.save(&config).unwrap();
        assert_eq!(list(&config).unwrap(), [saved]);
    }
}
