//! The bubble's Apptainer instance: its command line, its start, its end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use hpk_userns::Ids;

use super::turn::Turn;
use crate::apptainer::{self, Bind};
use crate::logs::last_lines;
use crate::procfs::{self, Process, Stat};

/// How an instance is started.
#[derive(Debug)]
pub struct Start<'a> {
    pub apptainer: &'a Path,
    pub image: &'a Path,
    pub binds: &'a [Bind],
    pub host_name: &'a str,
    pub ids: &'a Ids,
    /// Options for the drivers of the host's GPUs.
    pub drivers: &'a [&'static str],
    /// Where Apptainer writes its init's PID.
    pub pid_file: &'a Path,
    /// The first that the user has free on this host is taken.
    pub names: &'a [String],
    /// The lock that starts of this user on this host take in turn.
    pub turn: &'a Path,
}

impl Start<'_> {
    /// The arguments of `apptainer`.
    fn arguments(&self, name: &str) -> Result<Vec<String>> {
        let mut arguments: Vec<String> = ["--quiet", "instance", "start"]
            .into_iter()
            .chain(apptainer::fakeroot(self.ids))
            .chain([
                "--net",
                "--network",
                "none",
                // Not --contain, whose /dev lacks the GPUs; what it leaves out is left out here.
                "--no-mount",
                "home,tmp,cwd,bind-paths",
                "--hostname",
                self.host_name,
                "--pid-file",
            ])
            .map(str::to_owned)
            .collect();
        arguments.push(self.pid_file.display().to_string());
        arguments.extend(self.drivers.iter().map(|option| (*option).to_owned()));
        for bind in self.binds {
            arguments.push("--bind".into());
            arguments.push(bind.argument()?);
        }
        arguments.push(self.image.display().to_string());
        arguments.push(name.into());
        Ok(arguments)
    }

    pub fn run(&self) -> Result<Instance> {
        let _turn = Turn::take(self.turn);
        let mut refused = String::new();
        for name in self.names {
            if is_taken(self.apptainer, name)? {
                refused = format!("the instance {name} runs already");
                continue;
            }
            let output = Command::new(self.apptainer)
                .args(self.arguments(name)?)
                .output()
                .with_context(|| format!("running {}", self.apptainer.display()))?;
            if output.status.success() {
                return Instance::adopt(self.apptainer, name, self.pid_file);
            }
            refused = last_lines(&String::from_utf8_lossy(&output.stderr), 3);
            break;
        }
        bail!("apptainer instance start: {refused}")
    }
}

/// A running instance.
#[derive(Debug)]
pub struct Instance {
    apptainer: PathBuf,
    pub name: String,
    /// Its init, in the host's PID namespace.
    pub init: Process,
    /// Apptainer's own process around it, which leads the session of its FUSE helpers.
    starter: Option<Process>,
}

impl Instance {
    fn adopt(apptainer: &Path, name: &str, pid_file: &Path) -> Result<Self> {
        let text = crate::files::read(pid_file)?;
        let init = text
            .trim()
            .parse()
            .ok()
            .and_then(Process::of)
            .with_context(|| format!("instance {name} ended as soon as it began"))?;
        let starter = Stat::of(init.pid)
            .map(|stat| stat.parent)
            .filter(|parent| *parent > 1)
            .and_then(Process::of);
        Ok(Self {
            apptainer: apptainer.to_owned(),
            name: name.to_owned(),
            init,
            starter,
        })
    }

    /// Kills what is left of it, its FUSE helpers included, and removes Apptainer's record of it.
    pub async fn end(&self) {
        self.init.signal(Signal::SIGKILL);
        let limit = Instant::now() + Duration::from_secs(3);
        while Instant::now() < limit && self.starter.is_some_and(|starter| starter.lives()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if let Some(starter) = self.starter {
            starter.signal(Signal::SIGKILL);
            // A list that can't be had leaves the session to Slurm, which ends the step's processes.
            for (pid, stat) in procfs::all().unwrap_or_default() {
                if stat.session == starter.pid {
                    // Gone already is as good.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
        // Listing removes the records of instances that have gone.
        let _ = is_taken(&self.apptainer, &self.name);
    }
}

fn is_taken(apptainer: &Path, name: &str) -> Result<bool> {
    let output = Command::new(apptainer)
        .args(["--quiet", "instance", "list", "--json"])
        .output()
        .with_context(|| format!("running {}", apptainer.display()))?;
    if !output.status.success() {
        bail!(
            "apptainer instance list: {}",
            last_lines(&String::from_utf8_lossy(&output.stderr), 3)
        );
    }
    let list: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("reading apptainer's list of instances")?;
    let instances = list["instances"].as_array().cloned().unwrap_or_default();
    Ok(instances
        .iter()
        .any(|instance| instance["instance"] == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instance_gets_no_network_and_in_single_id_mode_no_other_ids() {
        let start = Start {
            apptainer: Path::new("apptainer"),
            image: Path::new("/i.sif"),
            binds: &[Bind::new("/tmp/x", "/var/lib/hpk")],
            host_name: "node1",
            ids: &Ids::Single { why: String::new() },
            drivers: &["--nv"],
            pid_file: Path::new("/p"),
            names: &[],
            turn: Path::new("/l"),
        };
        let line = start.arguments("bubble1").unwrap().join(" ");
        for part in [
            "start --fakeroot --ignore-subuid ",
            " --net --network none ",
        ] {
            assert!(line.contains(part), "{line}");
        }
        assert!(
            line.ends_with("--nv --bind /tmp/x:/var/lib/hpk /i.sif bubble1"),
            "{line}"
        );
    }
}
