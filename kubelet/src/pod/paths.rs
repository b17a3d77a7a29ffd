//! Where a pod's files are.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::volumes::apply::Dirs;

/// One pod's folders. All but the logs can be entered by the kubelet's user alone.
#[derive(Debug, Clone)]
pub struct Paths {
    /// In memory: state file, bundles, /etc files, secrets.
    pub run: PathBuf,
    /// On disk: layers, emptyDir, termination messages.
    pub root: PathBuf,
    pub logs: PathBuf,
}

impl Paths {
    pub fn new(config: &Config, namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            run: runs(config).join(uid),
            root: config.args.root_dir.join("pods").join(uid),
            logs: config
                .args
                .pod_log_dir
                .join(format!("{namespace}_{name}_{uid}")),
        }
    }

    /// Makes the pod's folders, 0700.
    pub fn ensure(&self) -> io::Result<()> {
        private_dir(&self.run)?;
        private_dir(&self.root)
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.run.join(id)
    }

    /// The writable layer of one run of a container.
    pub fn layer(&self, id: &str) -> PathBuf {
        self.root.join("layers").join(id)
    }

    pub fn volumes(&self) -> Dirs {
        Dirs {
            disk: self.root.join("volumes"),
            memory: self.run.join("volumes"),
        }
    }

    pub fn etc(&self, file: &str) -> PathBuf {
        self.run.join("etc").join(file)
    }

    pub fn shm(&self) -> PathBuf {
        self.run.join("shm")
    }

    /// Where parts of volumes are bound for the runtime: `<volume>/<container>/<index>`.
    pub fn sub_paths(&self) -> PathBuf {
        self.run.join("volume-subpaths")
    }

    pub fn termination_message(&self, container: &str, attempt: u32) -> PathBuf {
        self.root
            .join("messages")
            .join(container)
            .join(attempt.to_string())
    }

    pub fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs.join(container).join(format!("{attempt}.log"))
    }
}

/// The FIFO that is the stdin of a container that wants one.
pub fn stdin(bundle: &Path) -> PathBuf {
    bundle.join("stdin")
}

/// The folder that holds every pod's run folder.
pub fn runs(config: &Config) -> PathBuf {
    config.args.run_dir.join("pods")
}

/// A folder for its owner alone from the moment it exists; its parents too where they are missing.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}
