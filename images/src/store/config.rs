//! Where the store lies, from the environment.

use std::path::{Path, PathBuf};

use super::error::Error;
use crate::limits::{self, Limits};
use crate::logins;
use crate::private::{local_folder, local_parent};

/// Where the store lies and what it uses.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The store on the shared file system, normally `~/.hpk/store`.
    pub root: PathBuf,
    /// `registries.yaml` in K3s's form; a file that doesn't exist is as good as none.
    pub registries: Option<PathBuf>,
    /// The user's own logins at registries, where no others are given: files as of [`logins::files`]; any may be missing.
    pub logins: Vec<PathBuf>,
    /// Which images may be taken: a [`policy`](crate::policy) file; one that doesn't exist takes all.
    pub policy: Option<PathBuf>,
    /// Bytes that the store may grow to before images that nobody uses leave it.
    pub max_bytes: Option<u64>,
    /// Node-local scratch for downloads; needs about two and a half times an image's compressed size.
    pub local_dir: PathBuf,
    /// What an image may ask of the node.
    pub limits: Limits,
}

impl StoreConfig {
    /// `HPK_STORE` (else `store` in `HPK_HOME`, else `~/.hpk/store`), `HPK_REGISTRIES` and `HPK_POLICY` (else
    /// `registries.yaml` and `policy.json` in `HPK_HOME` or `~/.hpk`), `HPK_STORE_MAX_GIB` (else no bound), `HPK_LOCAL_DIR`
    /// (else `/var/lib/hpk/images` where `/var/lib/hpk` is ours to write, else `images` in the user's [`local_folder`]),
    /// [`Limits::from_env`].
    pub fn from_env() -> Result<Self, Error> {
        let bubble = Path::new("/var/lib/hpk");
        let ours = || nix::unistd::access(bubble, nix::unistd::AccessFlags::W_OK).is_ok();
        let local_dir = match path("HPK_LOCAL_DIR") {
            Some(dir) => dir,
            None if ours() => bubble.join("images"),
            None => local_folder(&home().ok_or(Error::NoHome)?, &local_parent())?.join("images"),
        };
        Self::with_local_dir(local_dir)
    }

    /// The same, with a node-local folder of the caller's.
    pub fn with_local_dir(local_dir: PathBuf) -> Result<Self, Error> {
        let home = home();
        let root = path("HPK_STORE").or_else(|| Some(home.as_ref()?.join("store")));
        let beside = |name: &str, file: &str| {
            path(name).or_else(|| home.as_ref().map(|home| home.join(file)))
        };
        Ok(Self {
            root: root.ok_or(Error::NoHome)?,
            registries: beside("HPK_REGISTRIES", "registries.yaml"),
            logins: logins::files(),
            policy: beside("HPK_POLICY", "policy.json"),
            max_bytes: limits::store_max_bytes()?,
            local_dir,
            limits: Limits::from_env()?,
        })
    }
}

/// A path in the environment.
fn path(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|v| !v.is_empty());
    value.map(PathBuf::from)
}

fn home() -> Option<PathBuf> {
    path("HPK_HOME").or_else(|| path("HOME").map(|h| h.join(".hpk")))
}
