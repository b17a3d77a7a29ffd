//! Looking at a host.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use hpk_userns::Ids;
use hpk_userns::outside::user_name;
use nix::sys::statvfs::statvfs;

use crate::gpus::{self, Offer};
use crate::userns::Failure;
use crate::userns::probe::Maker;
use crate::{allocation, cgroups, files, settings};

/// What was seen. Each field is as the host has it; `judge` says what it means.
#[derive(Debug, Clone)]
pub struct Observed {
    pub user: String,
    /// Sysctls by path below /proc/sys; those that aren't there are left out.
    pub sysctls: Vec<(&'static str, String)>,
    pub ids: Result<Ids, String>,
    /// The name asked for, and what `apptainer --version` said.
    pub apptainer: (String, Result<String, String>),
    pub fuse: Result<(), String>,
    pub tun: Result<(), String>,
    pub pasta: Option<PathBuf>,
    pub slirp4netns: Option<PathBuf>,
    /// Who makes user namespaces, and others in them; else why nobody does.
    pub namespaces: Result<Maker, String>,
    pub overlay: Result<(), Failure>,
    pub nftables: Result<(), Failure>,
    /// Cgroup controllers whose limits pods can have.
    pub limits: Result<Vec<String>, String>,
    /// GPUs for pods; none where this host has no GPU's driver.
    pub gpus: Option<Result<Offer, String>>,
    pub local: Result<Place, String>,
    pub home: Result<Place, String>,
}

/// A file system.
#[derive(Debug, Clone)]
pub struct Place {
    pub path: PathBuf,
    /// As /proc/mounts names its type.
    pub kind: String,
    pub free_mib: u64,
    /// Any user may remove or rename what others have in it.
    pub lawless: bool,
}

pub fn observe() -> Observed {
    let path = settings::search_path();
    let text = |error: anyhow::Error| format!("{error:#}");
    let namespaces = Maker::find();
    let in_them = |probe: fn(Maker) -> Result<(), Failure>| match &namespaces {
        Ok(maker) => probe(*maker),
        Err(why) => Err(Failure::Untried(why.clone())),
    };
    Observed {
        user: user_name(),
        sysctls: [
            "kernel/osrelease",
            "kernel/unprivileged_userns_clone",
            "kernel/apparmor_restrict_unprivileged_userns",
            "user/max_user_namespaces",
            "user/max_net_namespaces",
        ]
        .into_iter()
        .filter_map(|name| {
            let value = std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
            Some((name, value.trim().to_owned()))
        })
        .collect(),
        ids: Ids::of_this_user(&path).map_err(|error| text(error.into())),
        apptainer: apptainer(&path),
        fuse: openable("/dev/fuse"),
        tun: openable("/dev/net/tun"),
        pasta: hpk_uplink::find_program("pasta", &path),
        slirp4netns: hpk_uplink::find_program("slirp4netns", &path),
        overlay: in_them(Maker::probe_overlay),
        nftables: in_them(Maker::probe_nftables),
        namespaces,
        limits: cgroups::usable().map_err(text),
        gpus: (!gpus::driver_options(Path::new("/dev")).is_empty())
            .then(|| gpus::offer(&allocation::variables()).map_err(text)),
        local: place(&settings::local_parent()).map_err(text),
        home: settings::home().and_then(|home| place(&home)).map_err(text),
    }
}

fn apptainer(path: &str) -> (String, Result<String, String>) {
    let name = settings::apptainer();
    let answer = match hpk_uplink::find_program(&name, path) {
        None => Err("not found".to_owned()),
        Some(program) => match Command::new(&program).arg("--version").output() {
            Err(error) => Err(error.to_string()),
            Ok(output) if output.status.success() => {
                Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
            }
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        },
    };
    (name, answer)
}

fn openable(device: &str) -> Result<(), String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .map(drop)
        .map_err(|error| error.to_string())
}

fn place(path: &Path) -> Result<Place> {
    let seen = statvfs(path).with_context(|| format!("looking at {}", path.display()))?;
    let mounts = files::read(Path::new("/proc/mounts"))?;
    let real = path
        .canonicalize()
        .with_context(|| format!("resolving {}", path.display()))?;
    let mode = real.metadata().map(|metadata| metadata.mode());
    let mode = mode.with_context(|| format!("looking at {}", path.display()))?;
    Ok(Place {
        path: path.to_owned(),
        // Written by all, and not sticky.
        lawless: mode & 0o1002 == 0o002,
        kind: kind_of(&mounts, &real).unwrap_or("unknown").to_owned(),
        free_mib: (seen.blocks_available() as u64).saturating_mul(seen.fragment_size() as u64)
            >> 20,
    })
}

/// The type of the mount with the longest path that `path` is in; the last one wins.
fn kind_of<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let at = fields.nth(1)?;
            path.starts_with(at).then_some((at.len(), fields.next()?))
        })
        .max_by_key(|(length, _)| *length)
        .map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_names_the_type() {
        let mounts = "x / overlay rw\nx /home nfs4 rw\nx /home/hpc ext4 rw\n";
        assert_eq!(kind_of(mounts, Path::new("/home/hpc/a")), Some("ext4"));
        assert_eq!(kind_of(mounts, Path::new("/home/eve")), Some("nfs4"));
        assert_eq!(kind_of(mounts, Path::new("/homes")), Some("overlay"));
    }
}
