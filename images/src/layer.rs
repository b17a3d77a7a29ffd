//! One layer: decompression by what it is (not by what it is called), and the list of its entries.

use std::io::{self, BufRead, BufReader, Read};

use sha2::{Digest as _, Sha256};

use crate::members::{Member, Members};

/// Metadata all kinds of entries have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits with setuid, setgid, sticky.
    pub mode: u32,
    /// Owner, a number of the container.
    pub uid: u64,
    /// Group, a number of the container.
    pub gid: u64,
    /// Modification time, seconds since 1970.
    pub mtime: u64,
    /// Extended attributes: name, value.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Dir,
    /// A regular file of so many bytes.
    File {
        /// Bytes.
        size: u64,
    },
    /// A symbolic link and its text.
    Symlink(Vec<u8>),
    /// Another name of a file: that file's path, as in the tar.
    Hardlink(Vec<u8>),
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry of a layer's tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Place among the tar's entries, from 0.
    pub index: usize,
    /// Path, as in the tar.
    pub path: Vec<u8>,
    /// Metadata.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind,
}

/// A layer's entries, and the digest of its uncompressed bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// In the tar's order.
    pub entries: Vec<Entry>,
    /// `sha256:…` of the tar, to be compared with the config's diff id.
    pub diff_id: String,
}

/// A layer's bytes, decompressed: gzip (several members too), zstd or plain, by its first bytes.
pub fn decompress<'a>(raw: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut raw = BufReader::with_capacity(256 << 10, raw);
    let magic = raw.fill_buf()?;
    Ok(if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(raw))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(raw)?)
    } else {
        Box::new(raw)
    })
}

/// Reads the whole (compressed) layer once: its entries and its diff id.
pub fn list(raw: impl Read) -> io::Result<Listing> {
    let mut tar = Hashing {
        inner: decompress(raw)?,
        hash: Sha256::new(),
    };
    let mut entries = Vec::new();
    let mut members = Members::new(&mut tar);
    while let Some(member) = members.next()? {
        let index = entries.len();
        let (meta, kind) = describe(&member)?;
        entries.push(Entry {
            index,
            path: member.path,
            meta,
            kind,
        });
    }
    // What stands behind the tar's end counts for the digest, too.
    io::copy(&mut tar, &mut io::sink())?;
    let diff_id = format!("sha256:{}", hex(&tar.hash.finalize()));
    Ok(Listing { entries, diff_id })
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }
}

/// A member's metadata and kind.
fn describe(member: &Member) -> io::Result<(Meta, Kind)> {
    use tar::EntryType as T;
    let header = &member.header;
    let meta = Meta {
        mode: header.mode()? & 0o7777,
        uid: header.uid()?,
        gid: header.gid()?,
        mtime: header.mtime()?,
        xattrs: member
            .pax
            .iter()
            .filter_map(|(k, v)| kept_xattr(k, v))
            .collect(),
    };
    let device = || -> io::Result<(u32, u32)> {
        Ok((
            header.device_major()?.unwrap_or_default(),
            header.device_minor()?.unwrap_or_default(),
        ))
    };
    let kind = match header.entry_type() {
        T::Directory => Kind::Dir,
        // Before POSIX a folder was a file whose name ends in a slash.
        T::Regular if member.path.ends_with(b"/") => Kind::Dir,
        T::Regular | T::Continuous => Kind::File { size: member.size },
        T::Symlink => Kind::Symlink(member.link.clone()),
        T::Link => Kind::Hardlink(member.link.clone()),
        T::Char => device().map(|(major, minor)| Kind::Char(major, minor))?,
        T::Block => device().map(|(major, minor)| Kind::Block(major, minor))?,
        T::Fifo => Kind::Fifo,
        other => {
            let path = String::from_utf8_lossy(&member.path).into_owned();
            let kind = char::from(other.as_byte());
            let reason = format!("{path:?} is a tar entry of unknown type {kind:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
    };
    Ok((meta, kind))
}

/// The attributes worth keeping: what an unprivileged mount can use.
///
/// `user.overlay.*` would be taken for marks of our own overlay (a hostile layer could redirect into other folders), and
/// `trusted.*` and ACLs can't be used without the initial namespace's root.
fn kept_xattr(key: &[u8], value: &[u8]) -> Option<(String, Vec<u8>)> {
    let name = std::str::from_utf8(key.strip_prefix(b"SCHILY.xattr.")?).ok()?;
    let useful = name == "security.capability"
        || (name.starts_with("user.") && !name.starts_with("user.overlay."));
    useful.then(|| (name.to_owned(), value.to_vec()))
}
