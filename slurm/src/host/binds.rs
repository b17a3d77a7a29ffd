//! What a bubble sees of the host.

use std::path::{Path, PathBuf};

use crate::apptainer::Bind;
use crate::settings::BUBBLE_ROOT;

/// Folders in the node-local one that are bound to other places of the bubble too: its root is
/// read-only.
pub const OWN_FOLDERS: [(&str, &str); 10] = [
    ("run", "/run"),
    ("tmp", "/tmp"),
    ("var-tmp", "/var/tmp"),
    ("log", "/var/log"),
    ("cache", "/var/cache"),
    ("cni.d", "/etc/cni/net.d"),
    ("cni-lib", "/var/lib/cni"),
    ("kubelet-lib", "/var/lib/kubelet"),
    ("root", "/root"),
    ("etc-hpk", "/etc/hpk"),
];

/// What a bubble sees of the host.
#[derive(Debug, Clone)]
pub struct Sources<'a> {
    pub local: &'a Path,
    pub home: &'a Path,
    /// The folder of ours on the shared file system, where HPK_HOME puts it outside the home.
    pub hpk_home: &'a Path,
    pub own_program: &'a Path,
    /// The site's certificate authorities.
    pub trust_store: Option<&'a Path>,
    /// Programs that go over the image's (HPK_DEV=1): path on the host, path in the bubble.
    pub programs: Vec<(PathBuf, PathBuf)>,
}

pub fn plan_binds(sources: &Sources<'_>) -> Vec<Bind> {
    let local = sources.local;
    let mut binds = vec![Bind::new(local, BUBBLE_ROOT)];
    for (folder, target) in OWN_FOLDERS {
        binds.push(Bind::new(local.join(folder), target));
    }
    for file in ["resolv.conf", "hosts"] {
        binds.push(Bind::new(local.join(file), Path::new("/etc").join(file)));
    }
    binds.push(Bind::new(sources.home, sources.home));
    if !sources.hpk_home.starts_with(sources.home) {
        binds.push(Bind::new(sources.hpk_home, sources.hpk_home));
    }
    // Both ends of the link are the same program, whatever the image has.
    binds.push(Bind::new(sources.own_program, "/usr/local/bin/hpk-bubble").read_only());
    if let Some(file) = sources.trust_store {
        binds.push(Bind::new(file, "/etc/ssl/certs/ca-certificates.crt").read_only());
    }
    for (program, target) in &sources.programs {
        binds.push(Bind::new(program, target).read_only());
    }
    binds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources<'a>() -> Sources<'a> {
        Sources {
            local: Path::new("/tmp/hpk-1000-7"),
            home: Path::new("/home/hpc"),
            hpk_home: Path::new("/home/hpc/.hpk"),
            own_program: Path::new("/hpk/bin/hpk-bubble"),
            trust_store: None,
            programs: Vec::new(),
        }
    }

    #[test]
    fn the_node_local_folder_is_bound_before_what_is_in_it() {
        let binds = plan_binds(&sources());
        assert_eq!(binds[0], Bind::new("/tmp/hpk-1000-7", "/var/lib/hpk"));
        assert!(binds.contains(&Bind::new("/tmp/hpk-1000-7/run", "/run")));
        assert!(binds.contains(&Bind::new("/home/hpc", "/home/hpc")));
        assert!(
            binds
                .iter()
                .all(|bind| bind.source != Path::new("/home/hpc/.hpk"))
        );
    }
}
