//! One layer: decompression by what it is (not by what it is called), and the list of its entries.

use std::io::{self, BufRead, BufReader, Read};

use sha2::{Digest as _, Sha256};

use crate::limits::{ATTRIBUTE, Budget, Exceeded, PATH};
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

impl Entry {
    /// Bytes it takes in memory; an error if a part of it is longer than the kernel could take.
    fn weight(&self) -> Result<u64, Exceeded> {
        let check = |what: &str, length: usize, limit: usize| match length > limit {
            true => Err(Exceeded::Length {
                what: format!("{what} of {}", self.shown()),
                length,
                limit,
            }),
            false => Ok(length),
        };
        let mut bytes = size_of::<Self>() + check("the path", self.path.len(), PATH)?;
        if let Kind::Symlink(to) | Kind::Hardlink(to) = &self.kind {
            bytes += check("the link", to.len(), PATH)?;
        }
        for (name, value) in &self.meta.xattrs {
            bytes += name.len() + check("an attribute", value.len(), ATTRIBUTE)?;
        }
        Ok(bytes as u64)
    }

    /// Its path as far as it makes sense in a message.
    fn shown(&self) -> String {
        let head = &self.path[..self.path.len().min(100)];
        format!("{:?}", String::from_utf8_lossy(head))
    }
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
///
/// An image beyond its limits is an error whose inner one is [`Exceeded`].
pub fn list(raw: impl Read, budget: &Budget) -> io::Result<Listing> {
    let mut tar = Hashing {
        inner: budget.of(decompress(raw)?),
        hash: Sha256::new(),
    };
    let mut entries = Vec::new();
    let mut members = Members::new(&mut tar);
    while let Some(member) = members.next()? {
        let index = entries.len();
        let (meta, kind) = describe(&member)?;
        let entry = Entry {
            index,
            path: member.path,
            meta,
            kind,
        };
        budget.list(entry.weight()?)?;
        entries.push(entry);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::tests::budget;
    use crate::merge::tests::Layer;

    fn exceeded(tar: &[u8], unpacked: u64, listing: u64) -> Exceeded {
        let error = list(tar, &budget(unpacked, listing)).unwrap_err();
        let inner = error.get_ref().unwrap().downcast_ref::<Exceeded>();
        inner.unwrap_or_else(|| panic!("{error}")).clone()
    }

    #[test]
    fn a_small_layer_that_unpacks_to_much_is_refused_before_it_is_through() {
        let bomb = zstd::encode_all(io::repeat(0).take(64 << 20), 1).unwrap();
        assert!(bomb.len() < 64 << 10, "{}", bomb.len());
        // A tar of zeros ends at once; what stands behind its end is unpacked for the digest, too.
        let limit = 1 << 20;
        assert_eq!(exceeded(&bomb, limit, limit), Exceeded::Unpacked { limit });
    }

    #[test]
    fn more_entries_than_there_is_memory_for_are_refused() {
        let mut layer = Layer::new();
        for n in 0..2000 {
            layer = layer.file(&format!("f{n}"), "");
        }
        let tar = layer.tar();
        let limit = 64 << 10;
        assert_eq!(exceeded(&tar, 1 << 30, limit), Exceeded::Listing { limit });
        let listed = list(tar.as_slice(), &budget(1 << 30, 1 << 20)).unwrap();
        assert_eq!(listed.entries.len(), 2000);
    }

    #[test]
    fn what_no_kernel_could_name_is_refused() {
        let path = "d/".repeat(PATH);
        let tar = Layer::new().with_pax(&[("path", &path)], tar::EntryType::Regular);
        let tar = tar.tar();
        let error = exceeded(&tar, 1 << 30, 1 << 30);
        assert!(
            matches!(&error, Exceeded::Length { what, limit: PATH, .. } if what.starts_with("the path of \"d/d/")),
            "{error}"
        );
        let link = "t".repeat(PATH + 1);
        let records = [("path", "l"), ("linkpath", &link)];
        let tar = Layer::new().with_pax(&records, tar::EntryType::Symlink);
        let error = exceeded(&tar.tar(), 1 << 30, 1 << 30);
        assert!(
            matches!(&error, Exceeded::Length { what, .. } if what == "the link of \"l\""),
            "{error}"
        );
        let value = "v".repeat(ATTRIBUTE + 1);
        let records = [("path", "f"), ("SCHILY.xattr.user.a", &value)];
        let tar = Layer::new().with_pax(&records, tar::EntryType::Regular);
        let error = exceeded(&tar.tar(), 1 << 30, 1 << 30);
        assert!(
            matches!(&error, Exceeded::Length { what, .. } if what == "an attribute of \"f\""),
            "{error}"
        );
    }
}
