//! Where `apptainer` and `hpk-pause` are.

use std::{
    fs::File,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::error::Error;

/// The programs the shim runs.
#[derive(Debug)]
pub struct Programs {
    pub apptainer: Option<PathBuf>,
    /// Kept open, so that an update of the file on disk doesn't matter to running pods.
    pub pause: Option<File>,
    /// Apptainer's parent process stays while a container runs (HPK_KEEP_ENGINE=1).
    pub keep_engine: bool,
    path: String,
}

impl Programs {
    /// Looks them up: `HPK_APPTAINER`, PATH; `HPK_PAUSE`, the shim's own directory, PATH.
    pub fn find() -> Self {
        let path = std::env::var("PATH").unwrap_or_default();
        let path = if path.is_empty() {
            "/usr/local/bin:/usr/bin:/bin".to_owned()
        } else {
            path
        };
        let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        let beside = std::env::current_exe()
            .ok()
            .and_then(|exe| Some(exe.parent()?.join("hpk-pause")));
        let pause = named("HPK_PAUSE")
            .or_else(|| beside.filter(|p| is_program(p)))
            .or_else(|| in_path(&path, "hpk-pause"));
        Self {
            apptainer: named("HPK_APPTAINER").or_else(|| in_path(&path, "apptainer")),
            pause: pause.and_then(|p| File::open(p).ok()),
            keep_engine: std::env::var_os("HPK_KEEP_ENGINE").is_some_and(|v| v == "1"),
            path,
        }
    }

    /// Another program, by its name.
    pub fn in_path(&self, name: &str) -> Option<PathBuf> {
        in_path(&self.path, name)
    }

    /// The same, or one of the administrators' folders, where a user's PATH often doesn't lead.
    pub fn administrators(&self, name: &str) -> Option<PathBuf> {
        in_path(&self.search(), name)
    }

    /// PATH, and the administrators' folders.
    pub fn search(&self) -> String {
        format!("{}:/sbin:/usr/sbin", self.path)
    }

    /// Apptainer's binary.
    pub fn apptainer(&self) -> Result<&Path, Error> {
        self.apptainer.as_deref().ok_or_else(|| Error::NoEngine {
            path: self.path.clone(),
        })
    }

    /// hpk-pause's open file.
    pub fn pause(&self) -> Result<&File, Error> {
        self.pause.as_ref().ok_or_else(|| Error::NoPause {
            path: self.path.clone(),
        })
    }
}

/// The program of that name in the first of the folders that has one.
pub fn in_path(path: &str, name: &str) -> Option<PathBuf> {
    path.split(':')
        .map(|dir| Path::new(dir).join(name))
        .find(|p| is_program(p))
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
