//! Header blocks: a count, then names and values with 32-bit lengths; compressed with zlib, one
//! compression stream per direction for the connection's whole life.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::dictionary::dictionary;

/// Names and values, in order.
pub type Headers = Vec<(String, String)>;

/// Longest uncompressed block taken, bytes: streams have a handful of short headers.
const MAX_BLOCK: usize = 64 * 1024;

/// A block that can't be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a header block doesn't decompress")]
    Compression,
    #[error("a header block is longer than {MAX_BLOCK} bytes")]
    TooLong,
    #[error("a header block is cut short or not text")]
    Malformed,
}

/// Reads the blocks of one direction.
#[derive(Debug)]
pub struct Inflater {
    zlib: Decompress,
    started: bool,
}

impl Default for Inflater {
    fn default() -> Self {
        Self {
            zlib: Decompress::new(true),
            started: false,
        }
    }
}

impl Inflater {
    /// Decompresses and parses one block.
    pub fn block(&mut self, compressed: &[u8]) -> Result<Headers, Error> {
        let mut plain: Vec<u8> = Vec::with_capacity(1024);
        let mut rest = compressed;
        loop {
            if plain.len() == plain.capacity() {
                if plain.len() >= MAX_BLOCK {
                    return Err(Error::TooLong);
                }
                plain.reserve(plain.len());
            }
            let (read, written) = (self.zlib.total_in(), self.zlib.total_out());
            let outcome = self
                .zlib
                .decompress_vec(rest, &mut plain, FlushDecompress::Sync);
            let consumed = usize::try_from(self.zlib.total_in() - read).unwrap_or(rest.len());
            rest = &rest[consumed.min(rest.len())..];
            match outcome {
                Ok(Status::Ok | Status::BufError) => {}
                // The stream must not end.
                Ok(Status::StreamEnd) => return Err(Error::Compression),
                Err(error) if error.needs_dictionary().is_some() && !self.started => {
                    self.zlib
                        .set_dictionary(&dictionary())
                        .map_err(|_| Error::Compression)?;
                    self.started = true;
                    continue;
                }
                Err(_) => return Err(Error::Compression),
            }
            let full = plain.len() == plain.capacity();
            let stuck = consumed == 0 && self.zlib.total_out() == written;
            if rest.is_empty() && !full {
                break;
            }
            if stuck && !full {
                return Err(Error::Compression);
            }
        }
        parse(&plain).ok_or(Error::Malformed)
    }
}

fn parse(mut plain: &[u8]) -> Option<Headers> {
    let number = |plain: &mut &[u8]| -> Option<usize> {
        let (head, rest) = plain.split_first_chunk::<4>()?;
        *plain = rest;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    };
    let count = number(&mut plain)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let mut text = || -> Option<String> {
            let length = number(&mut plain)?;
            let (text, rest) = plain.split_at_checked(length)?;
            plain = rest;
            String::from_utf8(text.to_vec()).ok()
        };
        let name = text()?;
        headers.push((name, text()?));
    }
    Some(headers)
}

/// Writes the blocks of one direction.
#[derive(Debug)]
pub struct Deflater {
    zlib: Compress,
    started: bool,
}

impl Default for Deflater {
    fn default() -> Self {
        Self {
            zlib: Compress::new(Compression::best(), true),
            started: false,
        }
    }
}

impl Deflater {
    /// Appends one compressed block to `out`.
    pub fn block(&mut self, headers: &[(String, String)], out: &mut Vec<u8>) -> Result<(), Error> {
        if !self.started {
            self.zlib
                .set_dictionary(&dictionary())
                .map_err(|_| Error::Compression)?;
            self.started = true;
        }
        let plain = compose(headers);
        // Incompressible bytes grow by little; a sync flush adds less than 16 bytes.
        let mut block = Vec::with_capacity(plain.len() + plain.len() / 8 + 64);
        let mut rest = plain.as_slice();
        loop {
            let read = self.zlib.total_in();
            self.zlib
                .compress_vec(rest, &mut block, FlushCompress::Sync)
                .map_err(|_| Error::Compression)?;
            let consumed = usize::try_from(self.zlib.total_in() - read).unwrap_or(rest.len());
            rest = &rest[consumed.min(rest.len())..];
            if rest.is_empty() && block.len() < block.capacity() {
                break;
            }
            block.reserve(64);
        }
        out.extend_from_slice(&block);
        Ok(())
    }
}

fn compose(headers: &[(String, String)]) -> Vec<u8> {
    let mut plain = Vec::new();
    let number = |plain: &mut Vec<u8>, number: usize| {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        plain.extend_from_slice(&number.to_be_bytes());
    };
    number(&mut plain, headers.len());
    for (name, value) in headers {
        for text in [name, value] {
            number(&mut plain, text.len());
            plain.extend_from_slice(text.as_bytes());
        }
    }
    plain
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn blocks_of_one_direction_share_a_compression_stream() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        for kind in ["error", "stdin", "stdout", "resize"] {
            let sent = headers(&[("streamtype", kind), ("port", "80")]);
            let mut block = Vec::new();
            deflater.block(&sent, &mut block).unwrap();
            assert_eq!(inflater.block(&block).unwrap(), sent);
        }
        let mut block = Vec::new();
        deflater.block(&[], &mut block).unwrap();
        assert_eq!(inflater.block(&block).unwrap(), []);
    }

    #[test]
    fn a_long_block_survives_and_a_too_long_one_is_refused() {
        for (length, fits) in [(20_000, true), (200_000, false)] {
            let long = "x".repeat(length);
            let mut block = Vec::new();
            let sent = headers(&[("a", long.as_str())]);
            Deflater::default().block(&sent, &mut block).unwrap();
            let read = Inflater::default().block(&block);
            assert_eq!(read, if fits { Ok(sent) } else { Err(Error::TooLong) });
        }
    }

    #[test]
    fn noise_is_an_error() {
        assert!(Inflater::default().block(b"not zlib at all").is_err());
        assert!(Inflater::default().block(&[0x78, 0xbb]).is_err());
        assert_eq!(parse(&[0, 0, 0, 1, 0, 0, 0, 9, b'x']), None);
        assert_eq!(parse(&[255, 255, 255, 255]), None);
    }
}
