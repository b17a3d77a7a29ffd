//! The Create request's mounts: how to make them with mount(2) from a forked child, or before that by a helper.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::mounts::parse_options;
use crate::error::Error;

/// mount(2) takes a page of options; an overlay of many layers has more.
const OPTIONS_LIMIT: usize = 4000;

/// One mount(2) call on the root file system's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Directory that relative paths in `data` start from.
    pub directory: Option<String>,
    pub kind: String,
    pub source: String,
    pub flags: MsFlags,
    pub data: String,
}

/// A mount by a program: mount(8)'s types `fuse.NAME` and `fuse3.NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helped {
    /// `mount.fuse` or `mount.fuse3`.
    pub helper: &'static str,
    /// The file system's program, which the helper starts.
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

impl Helped {
    /// Where in the bundle it is mounted.
    pub fn point(bundle: &Path) -> PathBuf {
        bundle.join("fuse")
    }

    fn of(kind: &str, source: &str, options: &[String]) -> Option<Self> {
        let (helper, kind) = match kind.split_once('.')? {
            ("fuse", kind) => ("mount.fuse", kind),
            ("fuse3", kind) => ("mount.fuse3", kind),
            _ => return None,
        };
        Some(Self {
            helper,
            kind: kind.to_owned(),
            source: source.to_owned(),
            options: options.to_vec(),
        })
    }
}

/// The request's mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rootfs {
    /// What is made before the others; the first of them binds it.
    pub helped: Option<Helped>,
    pub mounts: Vec<Mount>,
}

impl Rootfs {
    /// Plans a further mount for the container of `bundle`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a helper's on top of another, [`Error::Invalid`] for options that can't be.
    pub fn add(
        &mut self,
        bundle: &Path,
        kind: &str,
        source: &str,
        options: &[String],
    ) -> Result<(), Error> {
        let helped = Helped::of(kind, source, options);
        if helped.is_some() && !self.mounts.is_empty() {
            return Err(Error::Unsupported {
                field: format!("rootfs mount of type {kind:?}"),
                why: "it is on top of another",
            });
        }
        let mount = match &helped {
            Some(_) => plan("bind", &Helped::point(bundle).to_string_lossy(), &[])?,
            None => plan(kind, source, options)?,
        };
        self.helped = self.helped.take().or(helped);
        self.mounts.push(mount);
        Ok(())
    }
}

/// Plans one mount(2) of the request.
fn plan(kind: &str, source: &str, options: &[String]) -> Result<Mount, Error> {
    let field = format!("rootfs mount of type {kind:?}");
    let parsed = parse_options(options, &field)?;
    let mut mount = Mount {
        directory: None,
        kind: kind.to_owned(),
        source: source.to_owned(),
        flags: parsed.flags,
        data: parsed.data.join(","),
    };
    if parsed.bind || kind == "bind" {
        mount.flags |= MsFlags::MS_BIND;
        mount.flags.set(MsFlags::MS_REC, parsed.recursive);
        mount.data.clear();
    } else if mount.data.len() > OPTIONS_LIMIT {
        shorten(&mut mount);
        if mount.data.len() > OPTIONS_LIMIT {
            let why = format!(
                "its options take {} bytes, mount(2) takes a page",
                mount.data.len()
            );
            return Err(Error::Invalid { field, why });
        }
    }
    Ok(mount)
}

/// Makes an overlay's lower directories relative to the longest directory they share.
fn shorten(mount: &mut Mount) {
    let options: Vec<&str> = mount.data.split(',').collect();
    let Some(lower) = options.iter().find_map(|o| o.strip_prefix("lowerdir=")) else {
        return;
    };
    let layers: Vec<&str> = lower.split(':').collect();
    let Some(mut shared) = layers.first().and_then(|l| Path::new(l).parent()) else {
        return;
    };
    while !layers.iter().all(|l| Path::new(l).starts_with(shared)) {
        match shared.parent() {
            Some(parent) => shared = parent,
            None => return,
        }
    }
    let relative: Vec<String> = layers
        .iter()
        .map(|l| {
            Path::new(l)
                .strip_prefix(shared)
                .unwrap_or(Path::new(l))
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    let lower = format!("lowerdir={}", relative.join(":"));
    let directory = shared.to_string_lossy().into_owned();
    mount.data = options
        .iter()
        .map(|o| {
            if o.starts_with("lowerdir=") {
                lower.as_str()
            } else {
                o
            }
        })
        .collect::<Vec<_>>()
        .join(",");
    mount.directory = Some(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn a_view_snapshots_bind_is_read_only() {
        let mount = plan("bind", "/snap/1/fs", &strings(&["ro", "rbind"])).unwrap();
        assert_eq!(
            mount.flags,
            MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY
        );
        assert_eq!(mount.data, "");
    }

    #[test]
    fn an_overlay_of_many_layers_is_mounted_from_their_directory() {
        let layers: Vec<String> = (0..120)
            .map(|n| format!("/var/lib/containerd/overlayfs/snapshots/{n}/fs"))
            .collect();
        let options = [
            format!("lowerdir={}", layers.join(":")),
            "upperdir=/u".to_owned(),
            "workdir=/w".to_owned(),
        ];
        let mount = plan("overlay", "overlay", &options).unwrap();
        assert_eq!(
            mount.directory.as_deref(),
            Some("/var/lib/containerd/overlayfs/snapshots")
        );
        assert!(
            mount.data.starts_with("lowerdir=0/fs:1/fs:"),
            "{}",
            mount.data
        );
        assert!(
            mount.data.ends_with(",upperdir=/u,workdir=/w"),
            "{}",
            mount.data
        );
    }

    #[test]
    fn a_fuse_mount_is_made_by_its_helper_and_bound() {
        let bundle = Path::new("/b");
        let options = strings(&["lowerdir=/l", "upperdir=/u"]);
        let mut rootfs = Rootfs::default();
        let add = |rootfs: &mut Rootfs, kind| rootfs.add(bundle, kind, "overlay", &options);
        add(&mut rootfs, "fuse3.fuse-overlayfs").unwrap();
        let helped = rootfs.helped.clone().unwrap();
        assert_eq!(
            (helped.helper, &*helped.kind, helped.options),
            ("mount.fuse3", "fuse-overlayfs", options.clone())
        );
        assert_eq!(rootfs.mounts[0].source, "/b/fuse");
        assert_eq!(rootfs.mounts[0].flags, MsFlags::MS_BIND);
        let error = add(&mut rootfs, "fuse.x").unwrap_err();
        assert!(error.to_string().contains("\"fuse.x\""), "{error}");
    }
}
