//! A tar's members, read from a stream: ustar, GNU long names, PAX.
//!
//! Not the tar crate's own iterator, since that one splits PAX records at newlines; a file capability's value
//! may hold one. Its header type does the decoding of fields.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// Longest PAX header or long name taken; Linux' largest attribute has 64 KiB. A global header is copied to each member.
const MAX_EXTENSION: u64 = 1 << 20;
/// Most records of a PAX header: a few numbers and names, and the attributes.
const MAX_RECORDS: usize = 1024;

/// Reads one member after the other.
#[derive(Debug)]
pub struct Members<R> {
    inner: R,
    /// Bytes of the current member's data not read yet.
    left: u64,
    /// Bytes of padding behind it.
    padding: u64,
    global: Records,
}

type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// One member; its data is read from [`Members`].
#[derive(Debug)]
pub struct Member {
    /// Its header, with the PAX numbers put in.
    pub header: tar::Header,
    /// Its path.
    pub path: Vec<u8>,
    /// Its link's text, or empty.
    pub link: Vec<u8>,
    /// Bytes of data.
    pub size: u64,
    /// Its PAX records, global ones first.
    pub pax: Records,
}

impl<R: Read> Members<R> {
    /// Reads the tar from `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
            global: Records::new(),
        }
    }

    /// The stream below, after what has been read.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The next member, passing over what is left of the one before; none at the end.
    pub fn next(&mut self) -> io::Result<Option<Member>> {
        // Of several headers of a kind the last one counts, as for Go: else there would be no end to what they take.
        let (mut own, mut long_name, mut long_link) = (Records::new(), None, None);
        loop {
            self.skip()?;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            let size = header.entry_size()?;
            match header.entry_type() {
                tar::EntryType::XHeader => own = self.read_records(size)?,
                tar::EntryType::XGlobalHeader => self.global = self.read_records(size)?,
                tar::EntryType::GNULongName => long_name = Some(self.read_name(size)?),
                tar::EntryType::GNULongLink => long_link = Some(self.read_name(size)?),
                _ => {
                    let pax = self.global.iter().cloned().chain(own).collect();
                    return self.member(header, pax, long_name, long_link).map(Some);
                }
            }
        }
    }

    fn member(
        &mut self,
        mut header: tar::Header,
        pax: Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> io::Result<Member> {
        let record = |key: &str| {
            pax.iter()
                .rev()
                .find(|(k, _)| k == key.as_bytes())
                .map(|(_, v)| v.clone())
        };
        let number = |key: &str| -> io::Result<Option<u64>> {
            let Some(value) = record(key) else {
                return Ok(None);
            };
            // Times may have a fraction.
            let text = String::from_utf8_lossy(&value)
                .split('.')
                .next()
                .unwrap_or_default()
                .to_owned();
            match text.starts_with('-') {
                true => Ok(Some(0)),
                false => text
                    .parse()
                    .map(Some)
                    .map_err(|_| invalid(format!("PAX {key} is {text:?}"))),
            }
        };
        if let Some(uid) = number("uid")? {
            header.set_uid(uid);
        }
        if let Some(gid) = number("gid")? {
            header.set_gid(gid);
        }
        if let Some(mtime) = number("mtime")? {
            header.set_mtime(mtime);
        }
        let path = record("path")
            .or(long_name)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = record("linkpath").or(long_link);
        let link =
            link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let sparse = header.entry_type() == tar::EntryType::GNUSparse
            || pax.iter().any(|(key, _)| key.starts_with(b"GNU.sparse."));
        if sparse {
            let path = String::from_utf8_lossy(&path);
            return Err(invalid(format!(
                "{path:?} is stored as a sparse file, which image layers never are"
            )));
        }
        let declared = match number("size")? {
            Some(size) => size,
            None => header.entry_size()?,
        };
        // Links and folders have none, whatever some writers say of the link's target.
        let size = match header.entry_type() {
            tar::EntryType::Link | tar::EntryType::Symlink | tar::EntryType::Directory => 0,
            _ => declared,
        };
        self.expect(size)?;
        Ok(Member {
            header,
            path,
            link,
            size,
            pax,
        })
    }

    fn expect(&mut self, size: u64) -> io::Result<()> {
        let padded = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| invalid(format!("a tar member of {size} bytes")))?;
        (self.left, self.padding) = (size, padded - size);
        Ok(())
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let passed = io::copy(&mut self.inner.by_ref().take(rest), &mut io::sink())?;
        if passed < rest {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// The next header; none at the end, which is a block of zeros or the end of the stream.
    fn read_header(&mut self) -> io::Result<Option<tar::Header>> {
        let mut header = tar::Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => filled += n,
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        // POSIX: the sum of all bytes, with the checksum's own field (148 to 155) as spaces.
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, b)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    u32::from(*b)
                }
            })
            .sum();
        match header.cksum()? == sum {
            true => {
                fill_blanks(&mut header);
                Ok(Some(header))
            }
            false => Err(invalid("a tar header's checksum is wrong".to_owned())),
        }
    }

    fn read_extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(invalid(format!("a tar extension header of {size} bytes")));
        }
        self.expect(size)?;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn read_name(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let mut name = self.read_extension(size)?;
        if let Some(end) = name.iter().position(|b| *b == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn read_records(&mut self, size: u64) -> io::Result<Records> {
        let bytes = self.read_extension(size)?;
        let records = parse_records(&bytes);
        records.ok_or_else(|| {
            invalid(format!(
                "a PAX header that is malformed, or of more than {MAX_RECORDS} records"
            ))
        })
    }
}

/// The current member's data.
impl<R: Read> Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.by_ref().take(self.left).read(buf)?;
        if n == 0 && self.left > 0 && !buf.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// Some writers leave numbers out; these are zero, as for GNU tar and Go.
fn fill_blanks(header: &mut tar::Header) {
    let fill = |field: &mut [u8]| {
        if field.iter().all(|b| matches!(b, 0 | b' ')) {
            field[0] = b'0';
        }
    };
    let old = header.as_old_mut();
    fill(&mut old.mode);
    fill(&mut old.uid);
    fill(&mut old.gid);
    fill(&mut old.size);
    fill(&mut old.mtime);
    if let Some(ustar) = header.as_ustar_mut() {
        fill(&mut ustar.dev_major);
        fill(&mut ustar.dev_minor);
    } else if let Some(gnu) = header.as_gnu_mut() {
        fill(&mut gnu.dev_major);
        fill(&mut gnu.dev_minor);
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// `LENGTH KEY=VALUE\n`, LENGTH counting all of it (POSIX pax).
fn parse_records(mut bytes: &[u8]) -> Option<Records> {
    let mut records = Records::new();
    while !bytes.is_empty() && bytes[0] != 0 {
        if records.len() == MAX_RECORDS {
            return None;
        }
        let space = bytes.iter().position(|b| *b == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|b| *b == b'=')?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first member, once an empty `x` has been added.
    fn first_of(mut tar: tar::Builder<Vec<u8>>) -> Member {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_path("x").unwrap();
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
        let bytes = tar.into_inner().unwrap();
        Members::new(bytes.as_slice()).next().unwrap().unwrap()
    }

    #[test]
    fn a_record_may_hold_newlines_and_zeros() {
        let records = parse_records(b"14 a=x\n\0\n=b c\n8 bb=cc\n").unwrap();
        assert_eq!(
            records,
            [
                (b"a".to_vec(), b"x\n\0\n=b c".to_vec()),
                (b"bb".to_vec(), b"cc".to_vec())
            ]
        );
        for bad in [
            &b"99 a=b\n"[..],
            b"6 a=bc",
            b"x a=b\n",
            b"0 a=b\n",
            b"6 abc\n",
        ] {
            assert_eq!(parse_records(bad), None, "{bad:?}");
        }
        assert!(parse_records(&b"5 a=\n".repeat(MAX_RECORDS)).is_some());
        assert_eq!(parse_records(&b"5 a=\n".repeat(MAX_RECORDS + 1)), None);
    }

    #[test]
    fn of_several_headers_the_last_counts() {
        let mut tar = tar::Builder::new(Vec::new());
        for (key, value) in [("comment", "x"), ("path", "first"), ("path", "last")] {
            let value = value.as_bytes();
            tar.append_pax_extensions([(key, value)]).unwrap();
        }
        let member = first_of(tar);
        assert_eq!(member.path, b"last");
        assert_eq!(member.pax, [(b"path".to_vec(), b"last".to_vec())]);
    }

    #[test]
    fn long_names_and_data_are_read_and_passed_over() {
        let mut tar = tar::Builder::new(Vec::new());
        let long = "d/".repeat(90) + "x";
        for (path, data) in [(long.as_str(), "first"), ("b", "second")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, path, data.as_bytes()).unwrap();
        }
        let bytes = tar.into_inner().unwrap();
        let mut members = Members::new(bytes.as_slice());
        assert_eq!(members.next().unwrap().unwrap().path, long.as_bytes());
        assert_eq!(members.next().unwrap().unwrap().path, b"b");
        let mut text = String::new();
        members.read_to_string(&mut text).unwrap();
        assert_eq!(text, "second");
        assert!(members.next().unwrap().is_none());
    }

    #[test]
    fn numbers_left_out_are_zero() {
        let member = first_of(tar::Builder::new(Vec::new()));
        assert_eq!(
            (member.header.uid().unwrap(), member.header.mode().unwrap()),
            (0, 0)
        );
    }

    #[test]
    fn a_size_beyond_all_numbers_is_an_error() {
        let mut tar = tar::Builder::new(Vec::new());
        let size = u64::MAX.to_string();
        tar.append_pax_extensions([("size", size.as_bytes())])
            .unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        header.set_path("x").unwrap();
        header.set_cksum();
        tar.append(&header, &b"x"[..]).unwrap();
        let bytes = tar.into_inner().unwrap();
        assert!(Members::new(bytes.as_slice()).next().is_err());
    }

    #[test]
    fn a_broken_tar_is_an_error() {
        assert!(Members::new(&[1u8; 512][..]).next().is_err());
        assert!(Members::new(&[1u8; 100][..]).next().is_err());
        assert!(Members::new(&b""[..]).next().unwrap().is_none());
    }
}
