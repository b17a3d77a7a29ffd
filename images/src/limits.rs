//! What an image may ask of the node that pulls it: a small layer can unpack to terabytes, or to more entries than there
//! is memory for their names.
//!
//! - Unpacked bytes: [`Limits::unpacked`], a setting.
//! - What is kept in memory of the entries: [`LISTING`].
//! - Layers, a path's length, an attribute's: [`LAYERS`], [`PATH`], [`ATTRIBUTE`].
//! - The squashfs: what is free on the scratch disk, less [`RESERVE`] (others, etcd among them, write there, too).

use std::io::{self, Read};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names the setting of [`Limits::unpacked`].
pub const SETTING: &str = "HPK_IMAGE_MAX_GIB";

/// Names the setting of [`store_max_bytes`].
pub const STORE_SETTING: &str = "HPK_STORE_MAX_GIB";

/// Layers of one image. Docker makes 127 at most.
pub const LAYERS: usize = 512;

/// Bytes of a path, or of a link's text: Linux' PATH_MAX.
pub const PATH: usize = 4096;

/// Bytes of one extended attribute: Linux' XATTR_SIZE_MAX.
pub const ATTRIBUTE: usize = 64 << 10;

/// Bytes kept in memory of one image's entries (names, links, attributes): enough for about a million.
pub const LISTING: u64 = 256 << 20;

/// The part of the scratch disk's free space that is left to others: one in so many.
pub const RESERVE: u64 = 16;

/// What a site or user may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one image's layers, unpacked.
    pub unpacked: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked: 128 << 30,
        }
    }
}

/// A setting is no number of GiB, 1 or more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?} is not a number of GiB, 1 or more")]
pub struct SettingError {
    name: &'static str,
    value: String,
}

/// `HPK_STORE_MAX_GIB`: what the store may grow to before images that nobody uses leave it. Bytes.
pub fn store_max_bytes() -> Result<Option<u64>, SettingError> {
    let set = std::env::var_os(STORE_SETTING).filter(|v| !v.is_empty());
    set.map(|text| gib(STORE_SETTING, &text.to_string_lossy()))
        .transpose()
}

/// A number of GiB as bytes.
pub fn gib(name: &'static str, text: &str) -> Result<u64, SettingError> {
    let number: Option<u64> = text.parse().ok().filter(|n| *n > 0);
    let bytes = number.and_then(|n| n.checked_mul(1 << 30));
    bytes.ok_or_else(|| SettingError {
        name,
        value: text.to_owned(),
    })
}

impl Limits {
    /// `HPK_IMAGE_MAX_GIB`, else 128 GiB.
    pub fn from_env() -> Result<Self, SettingError> {
        match std::env::var_os(SETTING).filter(|v| !v.is_empty()) {
            Some(text) => text.to_string_lossy().parse(),
            None => Ok(Self::default()),
        }
    }
}

impl FromStr for Limits {
    type Err = SettingError;

    /// Takes a number of GiB.
    fn from_str(text: &str) -> Result<Self, SettingError> {
        Ok(Self {
            unpacked: gib(SETTING, text)?,
        })
    }
}

/// A limit was reached: the image is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// [`Limits::unpacked`].
    #[error("the image unpacks to more than {limit} bytes (set {SETTING} for more)")]
    Unpacked {
        /// Bytes.
        limit: u64,
    },
    /// [`LISTING`].
    #[error("the names and attributes of the image's entries take more than {limit} bytes")]
    Listing {
        /// Bytes.
        limit: u64,
    },
    /// [`PATH`] or [`ATTRIBUTE`].
    #[error("{what} has {length} bytes, the limit is {limit}")]
    Length {
        /// What of which entry.
        what: String,
        /// Bytes.
        length: usize,
        /// Bytes.
        limit: usize,
    },
}

impl From<Exceeded> for io::Error {
    fn from(exceeded: Exceeded) -> Self {
        io::Error::other(exceeded)
    }
}

/// What is left of one image's limits; all its layers draw on it. Clones are one budget.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Left>);

#[derive(Debug)]
struct Left {
    limits: Limits,
    listing_limit: u64,
    unpacked: AtomicU64,
    listing: AtomicU64,
}

impl Budget {
    /// A whole one.
    pub fn new(limits: Limits) -> Self {
        Self::with_listing(limits, LISTING)
    }

    fn with_listing(limits: Limits, listing: u64) -> Self {
        Self(Arc::new(Left {
            limits,
            listing_limit: listing,
            unpacked: AtomicU64::new(limits.unpacked),
            listing: AtomicU64::new(listing),
        }))
    }

    /// Takes memory for an entry of so many bytes.
    pub fn list(&self, bytes: u64) -> Result<(), Exceeded> {
        let limit = self.0.listing_limit;
        take(&self.0.listing, bytes).ok_or(Exceeded::Listing { limit })
    }

    /// `reader`, of unpacked bytes: an error once it gave more than there may be.
    pub fn of<R: Read>(&self, reader: R) -> impl Read {
        Drawing {
            reader,
            budget: self.clone(),
        }
    }
}

fn take(left: &AtomicU64, bytes: u64) -> Option<()> {
    let sub = |left: u64| left.checked_sub(bytes);
    let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sub);
    taken.ok().map(drop)
}

struct Drawing<R> {
    reader: R,
    budget: Budget,
}

impl<R: Read> Read for Drawing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buf)?;
        let limit = self.budget.0.limits.unpacked;
        take(&self.budget.0.unpacked, n as u64).ok_or(Exceeded::Unpacked { limit })?;
        Ok(n)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn budget(unpacked: u64, listing: u64) -> Budget {
        Budget::with_listing(Limits { unpacked }, listing)
    }

    #[test]
    fn the_setting_is_a_number_of_gib() {
        assert_eq!(Limits::from_str("2").unwrap().unpacked, 2 << 30);
        for bad in ["0", "-1", "2G", "x", "99999999999999"] {
            let error = Limits::from_str(bad).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn layers_draw_on_one_budget() {
        let budget = budget(10, 100);
        let read = |n: usize| {
            let mut reader = budget.of(io::repeat(1).take(n as u64));
            io::copy(&mut reader, &mut io::sink())
        };
        assert_eq!(read(6).unwrap(), 6);
        assert_eq!(read(4).unwrap(), 4);
        let error = read(1).unwrap_err();
        let exceeded = error.get_ref().unwrap().downcast_ref::<Exceeded>();
        assert_eq!(exceeded, Some(&Exceeded::Unpacked { limit: 10 }));
        assert_eq!(budget.list(100), Ok(()));
        assert_eq!(budget.list(1), Err(Exceeded::Listing { limit: 100 }));
    }
}
