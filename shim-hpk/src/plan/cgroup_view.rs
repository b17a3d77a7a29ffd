//! What a mount of type cgroup shows: the container's own cgroup, in each hierarchy.

use hpk_cgroup::View;
use hpk_pause::wire;
use nix::mount::MsFlags;

use super::{Container, Source, first_source, mounts::CGROUP};

/// Where the hierarchies are outside.
const HIERARCHIES: &str = "/sys/fs/cgroup";

impl Container {
    /// Puts binds in place of each mount of type cgroup. A container without a cgroup of its own sees
    /// those outside, never writable.
    pub fn show_cgroup(&mut self, views: &[View]) {
        while let Some(at) = self.setup.mounts.iter().position(|m| m.kind == CGROUP) {
            let asked = self.setup.mounts.remove(at);
            let read_only =
                MsFlags::from_bits_retain(asked.flags as _).contains(MsFlags::MS_RDONLY);
            let binds = match views {
                [] => {
                    let flags = asked.flags | MsFlags::MS_RDONLY.bits();
                    vec![wire::Mount {
                        flags,
                        recursive_flags: true,
                        ..self.bind(&asked, HIERARCHIES.into(), &asked.destination, true)
                    }]
                }
                [View { name: None, path }] => {
                    vec![self.bind(&asked, path.clone(), &asked.destination, false)]
                }
                all => {
                    // Its directories are made in it, so that it can be read-only but later.
                    if read_only {
                        self.setup.readonly_paths.push(asked.destination.clone());
                    }
                    let tmpfs = wire::Mount {
                        destination: asked.destination.clone(),
                        kind: "tmpfs".to_owned(),
                        source: "tmpfs".to_owned(),
                        flags: asked.flags & !MsFlags::MS_RDONLY.bits(),
                        data: "mode=755,size=64k".to_owned(),
                        ..wire::Mount::default()
                    };
                    let binds = all.iter().map(|view| {
                        let name = view.name.as_deref().unwrap_or_default();
                        let destination = format!("{}/{name}", asked.destination);
                        self.bind(&asked, view.path.clone(), &destination, false)
                    });
                    let binds: Vec<_> = binds.collect();
                    [vec![tmpfs], binds].concat()
                }
            };
            self.setup.mounts.splice(at..at, binds);
        }
    }

    fn bind(
        &mut self,
        asked: &wire::Mount,
        path: std::path::PathBuf,
        destination: &str,
        recursive: bool,
    ) -> wire::Mount {
        let source = path.to_string_lossy().into_owned();
        self.sources.push(Source {
            path,
            recursive,
            field: format!("the cgroup at {destination}"),
            optional: false,
        });
        let index = first_source(self.process.terminal) + (self.sources.len() - 1) as wire::Fd;
        wire::Mount {
            destination: destination.to_owned(),
            tree: Some(index),
            kind: "bind".to_owned(),
            source,
            propagation: (MsFlags::MS_REC | MsFlags::MS_PRIVATE).bits(),
            ..asked.clone()
        }
    }
}
