//! The merged tree → one tar stream → `mksquashfs -tar` → a squashfs.
//!
//! Not `sqfstar`, the same program by another name: 4.5.1 (Debian 12) takes no compressor options there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::layer::{Kind, Meta, decompress};
use crate::members::Members;
use crate::merge::{File, Tree};

/// Why packing failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No mksquashfs.
    #[error("starting mksquashfs (squashfs-tools 4.5 or newer)")]
    Start(#[source] io::Error),
    /// A downloaded layer can't be read a second time.
    #[error("reading layer {path}")]
    Layer {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// mksquashfs went before all was written.
    #[error("mksquashfs failed ({status}) writing {path}: {stderr}")]
    Failed {
        /// The squashfs.
        path: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// The squashfs would not fit where it is made.
    #[error("{path} would be larger than {limit} bytes")]
    TooLarge {
        /// The squashfs.
        path: PathBuf,
        /// Bytes.
        limit: u64,
    },
    /// Its pipe or process could not be handled.
    #[error("feeding mksquashfs")]
    Feed(#[source] io::Error),
}

/// Packs `tree` into a squashfs at `target`; `layers` are the (compressed) files the tree was listed from.
///
/// Blocking. `target` gets no larger than `limit` bytes. `packed` hears the bytes of file data as they go. On failure
/// `target` may hold garbage.
pub fn pack(
    tree: &Tree,
    layers: &[PathBuf],
    target: &Path,
    limit: u64,
    packed: impl FnMut(u64),
) -> Result<(), Error> {
    let mut child = ChildGuard(mksquashfs(tree, target).spawn().map_err(Error::Start)?);
    limit_files(&child.0, limit)?;
    let written = feed(tree, layers, &mut child.0, packed);
    let mut stderr = String::new();
    if let Some(mut pipe) = child.0.stderr.take() {
        pipe.read_to_string(&mut stderr).map_err(Error::Feed)?;
    }
    let status = child.0.wait().map_err(Error::Feed)?;
    match written {
        // Whatever broke the pipe, mksquashfs says why.
        Ok(()) if status.success() => Ok(()),
        Err(e @ Error::Layer { .. }) => Err(e),
        Err(e) if status.success() => Err(e),
        _ if status.signal() == Some(libc::SIGXFSZ) => Err(Error::TooLarge {
            path: target.to_owned(),
            limit,
        }),
        _ => Err(Error::Failed {
            path: target.to_owned(),
            status,
            stderr: stderr.trim().to_owned(),
        }),
    }
}

/// Before it is given anything to write, so that it can't have written more.
fn limit_files(child: &Child, limit: u64) -> Result<(), Error> {
    let limits = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    prlimit(Some(Pid::from_child(child)), Resource::Fsize, limits)
        .map_err(|errno| Error::Feed(errno.into()))?;
    Ok(())
}

/// Kills mksquashfs when a panic or error leaves it behind.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // It may have ended just now; then there is nothing to kill.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn mksquashfs(tree: &Tree, target: &Path) -> Command {
    let mut command = Command::new("mksquashfs");
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    command
        .arg("-")
        .arg(target)
        .arg("-tar")
        .args(["-quiet", "-no-progress", "-exit-on-error"])
        // Level 15, the default, is ten times slower for a tenth of the size.
        .args(["-comp", "zstd", "-Xcompression-level", "3"])
        .args(["-mem", "256M", "-processors"])
        .arg(processors.to_string())
        .arg("-root-mode")
        .arg(format!("{:o}", tree.root.mode))
        .args([
            "-root-uid",
            &tree.root.uid.to_string(),
            "-root-gid",
            &tree.root.gid.to_string(),
        ])
        .args([
            "-root-time",
            &tree.root.mtime.min(u64::from(u32::MAX)).to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn feed(
    tree: &Tree,
    layers: &[PathBuf],
    child: &mut Child,
    packed: impl FnMut(u64),
) -> Result<(), Error> {
    let Some(stdin) = child.stdin.take() else {
        return Err(Error::Feed(io::ErrorKind::BrokenPipe.into()));
    };
    let mut pipe = BufWriter::with_capacity(256 << 10, stdin);
    write_tar(tree, layers, &mut pipe, packed)?;
    pipe.flush().map_err(Error::Feed)
}

/// Writes the merged tar: folders and links first, then each layer's files as they come in it, each followed by its
/// further names.
pub fn write_tar<W: Write>(
    tree: &Tree,
    layers: &[PathBuf],
    out: W,
    mut packed: impl FnMut(u64),
) -> Result<(), Error> {
    let mut tar = Writer(tar::Builder::new(out));
    for node in &tree.nodes {
        tar.add(&node.path, &node.meta, &node.kind, io::empty())
            .map_err(Error::Feed)?;
    }
    for (path, files) in layers.iter().zip(&tree.files) {
        if !files.is_empty() {
            write_files(path, files, &mut tar, &mut packed)?;
        }
    }
    tar.0.finish().map_err(Error::Feed)
}

fn write_files<W: Write>(
    layer: &Path,
    files: &BTreeMap<usize, File>,
    tar: &mut Writer<W>,
    packed: &mut impl FnMut(u64),
) -> Result<(), Error> {
    let read = |source| Error::Layer {
        path: layer.to_owned(),
        source,
    };
    let mut members = Members::new(decompress(fs::File::open(layer).map_err(read)?).map_err(read)?);
    let (mut index, mut left) = (0, files.len());
    while left > 0 && members.next().map_err(read)?.is_some() {
        let file = files.get(&index);
        index += 1;
        let Some((file, (first, more))) = file.and_then(|f| Some((f, f.names.split_first()?)))
        else {
            continue;
        };
        left -= 1;
        let kind = Kind::File { size: file.size };
        let data = Counted {
            inner: &mut members,
            packed,
        };
        tar.add(first, &file.meta, &kind, data)
            .map_err(Error::Feed)?;
        for name in more {
            tar.add(
                name,
                &file.meta,
                &Kind::Hardlink(first.clone()),
                io::empty(),
            )
            .map_err(Error::Feed)?;
        }
    }
    Ok(())
}

/// A file's data, told of as it goes: one file may be most of the image.
struct Counted<'a, R, F> {
    inner: R,
    packed: &'a mut F,
}

impl<R: Read, F: FnMut(u64)> Read for Counted<'_, R, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if n > 0 {
            (self.packed)(n as u64);
        }
        Ok(n)
    }
}

struct Writer<W: Write>(tar::Builder<W>);

impl<W: Write> Writer<W> {
    /// One entry in ustar form, with a PAX header before it for what doesn't fit.
    fn add(&mut self, path: &[u8], meta: &Meta, kind: &Kind, data: impl Read) -> io::Result<()> {
        // Largest values of ustar's octal fields of 7 and 11 digits.
        const MAX_ID: u64 = 0o7777777;
        const MAX_SIZE: u64 = 0o77777777777;
        let (entry_type, link, device, size) = match kind {
            Kind::Dir => (tar::EntryType::Directory, None, None, 0),
            Kind::File { size } => (tar::EntryType::Regular, None, None, *size),
            Kind::Symlink(to) => (tar::EntryType::Symlink, Some(to.as_slice()), None, 0),
            Kind::Hardlink(to) => (tar::EntryType::Link, Some(to.as_slice()), None, 0),
            Kind::Char(major, minor) => (tar::EntryType::Char, None, Some((*major, *minor)), 0),
            Kind::Block(major, minor) => (tar::EntryType::Block, None, Some((*major, *minor)), 0),
            Kind::Fifo => (tar::EntryType::Fifo, None, None, 0),
        };
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        let mut number = |key: &str, value: u64, max: u64| {
            if value > max {
                pax.push((key.to_owned(), value.to_string().into_bytes()));
            }
            value.min(max)
        };
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(entry_type);
        header.set_mode(meta.mode);
        header.set_uid(number("uid", meta.uid, MAX_ID));
        header.set_gid(number("gid", meta.gid, MAX_ID));
        header.set_size(number("size", size, MAX_SIZE));
        header.set_mtime(meta.mtime.min(MAX_SIZE));
        if let Some((major, minor)) = device {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        let old = header.as_old_mut();
        if !fill(&mut old.name, path) {
            pax.push(("path".to_owned(), path.to_vec()));
        }
        if let Some(link) = link
            && !fill(&mut old.linkname, link)
        {
            pax.push(("linkpath".to_owned(), link.to_vec()));
        }
        // A further name has the file's attributes already.
        if !matches!(kind, Kind::Hardlink(_)) {
            pax.extend(
                meta.xattrs
                    .iter()
                    .map(|(n, v)| (format!("SCHILY.xattr.{n}"), v.clone())),
            );
        }
        header.set_cksum();
        if !pax.is_empty() {
            self.0
                .append_pax_extensions(pax.iter().map(|(k, v)| (k.as_str(), v.as_slice())))?;
        }
        self.0.append(&header, data)
    }
}

/// Copies what fits; says whether all did.
fn fill(field: &mut [u8; 100], value: &[u8]) -> bool {
    let n = value.len().min(field.len());
    field[..n].copy_from_slice(&value[..n]);
    value.len() <= field.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::list;
    use crate::merge::{
        merge,
        tests::{Layer, ample},
    };

    #[test]
    fn the_merged_tar_lists_as_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let long = "n/".repeat(80) + "end";
        let low = Layer::new()
            .dir("etc", 0o750)
            .file("etc/a", "low")
            .file("etc/b", "keep")
            .hardlink("z", "etc/a")
            .tar();
        let up = Layer::new()
            .file("etc/a", "upper")
            .symlink("l", &"t".repeat(99))
            .tar();
        let layers = [dir.path().join("0"), dir.path().join("1")];
        fs::write(&layers[0], zstd::encode_all(low.as_slice(), 1).unwrap()).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&up).unwrap();
        fs::write(&layers[1], gzip.finish().unwrap()).unwrap();
        let mut listings: Vec<_> = layers
            .iter()
            .map(|l| list(fs::File::open(l).unwrap(), &ample()).unwrap())
            .collect();
        listings[0].entries[2].path = long.clone().into_bytes();
        listings[0].entries[2].meta.uid = 4_000_000_000;
        listings[0].entries[2].meta.xattrs = vec![("user.x".into(), vec![0, 255, b'\n'])];
        let tree = merge(&listings).unwrap();

        let (mut tar, mut bytes) = (Vec::new(), 0);
        write_tar(&tree, &layers, &mut tar, |n| bytes += n).unwrap();
        assert_eq!(bytes, 3 + 4 + 5);
        let again = merge(&[list(tar.as_slice(), &ample()).unwrap()]).unwrap();
        assert_eq!(again.nodes, tree.nodes);
        let files = |t: &Tree| {
            let mut all: Vec<File> = t.files.iter().flat_map(|f| f.values().cloned()).collect();
            all.sort_by(|a, b| a.names.cmp(&b.names));
            all
        };
        assert_eq!(files(&again), files(&tree));
        assert_eq!(files(&tree).len(), 3);
        // `z` carries the data of the lower etc/a, whose own name the upper layer took.
        let mut archive = tar::Archive::new(tar.as_slice());
        let text = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap())
            .find_map(|mut e| {
                let mut text = String::new();
                (e.path_bytes().as_ref() == b"z")
                    .then(|| e.read_to_string(&mut text).map(|_| text).unwrap())
            });
        assert_eq!(text.as_deref(), Some("low"));
    }

    #[test]
    #[ignore = "needs squashfs-tools"]
    fn a_squashfs_gets_no_larger_than_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("0");
        let mut noise = vec![0; 8 << 20];
        fs::File::open("/dev/urandom")
            .unwrap()
            .read_exact(&mut noise)
            .unwrap();
        fs::write(&layer, Layer::new().data("noise", &noise).tar()).unwrap();
        let listing = list(fs::File::open(&layer).unwrap(), &ample()).unwrap();
        let tree = merge(&[listing]).unwrap();
        let target = dir.path().join("sqfs");
        let pack_within = |limit| {
            let mut told = 0;
            let layers = [layer.clone()];
            pack(&tree, &layers, &target, limit, |n| told += n).map(|()| told)
        };
        let limit = 2 << 20;
        let error = pack_within(limit).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        assert!(fs::metadata(&target).unwrap().len() <= limit);
        fs::remove_file(&target).unwrap();
        assert_eq!(pack_within(64 << 20).unwrap(), noise.len() as u64);
    }
}
