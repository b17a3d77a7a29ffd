//! What is the same wherever Apptainer is run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};
use hpk_userns::Ids;

use crate::{files, own_path, settings};

/// A folder or file of the host, and where a container sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

impl Bind {
    pub fn new(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            target: target.into(),
            read_only: false,
        }
    }

    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// As Apptainer's `--bind` wants it, which knows no quoting.
    pub fn argument(&self) -> Result<String> {
        let text = format!("{}:{}", self.source.display(), self.target.display());
        if text.matches(':').count() > 1 || text.contains(',') {
            bail!("{text}: Apptainer can't bind a path with a colon or comma");
        }
        Ok(if self.read_only {
            format!("{text}:ro")
        } else {
            text
        })
    }
}

/// Options for root in a container and, unless in single-id mode, the user's subordinate ids.
pub fn fakeroot(ids: &Ids) -> Vec<&'static str> {
    let mut options = vec!["--fakeroot"];
    if let Ids::Single { .. } = ids {
        // What Apptainer would fall back to where nothing better is; the program `fakeroot`, which it
        // would use if it found one, pretends what isn't so in other users' sight.
        options.extend(["--ignore-subuid", "--ignore-fakeroot-command"]);
    }
    options
}

/// Runs a task of this program (`in-userns TASK…`) as root of namespaces that Apptainer makes, user, mount and network
/// ones. `shown` is all of the host that it sees, at the same path.
pub fn run_task(task: &[&str], shown: &Path) -> Result<Output> {
    const PROGRAM: &str = "/hpk-bubble";
    let ids = Ids::of_this_user(&settings::search_path())?;
    // The container's root: nothing is in it, nothing is ever written there.
    let root = settings::hpk_home()?.join("empty");
    files::make_private_dir(&root)?;
    let binds = [
        Bind::new(shown, shown),
        Bind::new(own_path()?, PROGRAM).read_only(),
    ];
    let mut command = Command::new(settings::apptainer());
    command.args(["--silent", "exec"]).args(fakeroot(&ids));
    command.args(["--net", "--network", "none", "--pwd", "/"]);
    command.args(["--no-mount", "home,tmp,cwd,bind-paths"]);
    for bind in &binds {
        command.arg("--bind").arg(bind.argument()?);
    }
    command.arg(root).args([PROGRAM, "in-userns", "--entered"]);
    let output = command.args(task).output();
    output.with_context(|| format!("running {}", settings::apptainer()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_apptainer_would_misread_is_refused() {
        let error = Bind::new("/tmp/a,b", "/x").argument().unwrap_err();
        assert!(error.to_string().contains("/tmp/a,b"));
    }
}
