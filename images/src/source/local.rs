//! Images in a local file or folder: `docker save`'s and `skopeo`'s tars, OCI layouts (a folder, or a tar of one).
//!
//! Tars are not unpacked: their members are read where they lie.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Error, Source};
use crate::Reference;
use crate::layer::hex;
use crate::manifest::{Descriptor, MAX_BYTES, digest_hex};
use crate::members::Members;
use crate::policy::signature::Signature;
use crate::progress::{Event, Progress};

/// Bytes of a blob that are copied before that is told.
const STEP: u64 = 16 << 20;

/// Something with images in it.
#[derive(Debug, Clone)]
pub struct Local {
    path: PathBuf,
    /// Of a tar: name → offset and size of each regular member.
    members: Option<HashMap<String, (u64, u64)>>,
}

/// One image in it.
#[derive(Debug, Clone)]
pub struct LocalImage {
    /// What it is called there.
    pub names: Vec<Reference>,
    /// Its tag or name there, as it stands; of an OCI layout.
    pub label: Option<String>,
    local: Local,
    manifest: Vec<u8>,
    /// Digest → member, where the names don't say (docker's form).
    blobs: HashMap<String, String>,
}

/// Why there are no images to be had from it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It can't be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A JSON file in it isn't what it should be.
    #[error("parsing {member} of {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// In it.
        member: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// None of that tag.
    #[error("{path} has no image {wanted:?}; it has: {}", .there.join(", "))]
    NoSuchImage {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What it has.
        there: Vec<String>,
    },
    /// More than one would do.
    #[error(
        "{path} has more than one image{}: put one of these behind it, after a colon: {}",
        .wanted.as_ref().map(|it| format!(" {it:?}")).unwrap_or_default(),
        .there.join(", ")
    )]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// What was asked for, if anything.
        wanted: Option<String>,
        /// What it has.
        there: Vec<String>,
    },
    /// Neither form.
    #[error("{path} holds no image: neither index.json (OCI) nor manifest.json (docker)")]
    NoImage {
        /// The file.
        path: PathBuf,
    },
}

#[derive(Deserialize)]
struct OciIndex {
    manifests: Vec<OciEntry>,
}

#[derive(Deserialize)]
struct OciEntry {
    digest: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Local {
    /// Opens a folder or a tar. Blocking, as all of this type.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let read = |source| OpenError::Read {
            path: path.to_owned(),
            source,
        };
        let is_dir = fs::metadata(path).map_err(read)?.is_dir();
        Ok(Self {
            path: path.to_owned(),
            members: match is_dir {
                true => None,
                false => Some(index_tar(path).map_err(read)?),
            },
        })
    }

    /// What skopeo calls its form.
    pub fn transport(&self) -> &'static str {
        match (&self.members, self.has("index.json")) {
            (None, _) => "oci",
            (Some(_), true) => "oci-archive",
            (Some(_), false) => "docker-archive",
        }
    }

    /// All images in it.
    pub fn images(&self) -> Result<Vec<LocalImage>, OpenError> {
        if let Some(index) = self.json::<OciIndex>("index.json")? {
            return index
                .manifests
                .into_iter()
                .map(|e| self.oci_image(e))
                .collect();
        }
        match self.json::<Vec<DockerEntry>>("manifest.json")? {
            Some(entries) => entries.into_iter().map(|e| self.docker_image(e)).collect(),
            None => Err(OpenError::NoImage {
                path: self.path.clone(),
            }),
        }
    }

    fn oci_image(&self, entry: OciEntry) -> Result<LocalImage, OpenError> {
        const REF_NAME: &str = "org.opencontainers.image.ref.name";
        let names = ["io.containerd.image.name", REF_NAME];
        let named = names.iter().filter_map(|n| entry.annotations.get(*n));
        // A bare tag names no image.
        let named = named
            .filter(|n| n.contains([':', '/']))
            .filter_map(|n| n.parse().ok());
        let digest = digest_hex(&entry.digest).map_err(|e| self.invalid(e.to_string()))?;
        Ok(LocalImage {
            names: named.take(1).collect(),
            label: entry.annotations.get(REF_NAME).cloned(),
            manifest: self.small(&format!("blobs/sha256/{digest}"))?,
            local: self.clone(),
            blobs: HashMap::new(),
        })
    }

    /// Docker's form has no manifest and no digests of layers; both are made here.
    fn docker_image(&self, entry: DockerEntry) -> Result<LocalImage, OpenError> {
        let mut blobs = HashMap::new();
        let mut describe = |member: &str| -> Result<Descriptor, OpenError> {
            let (digest, size) = self.digest(member)?;
            blobs.insert(digest.clone(), member.to_owned());
            Ok(Descriptor {
                media_type: String::new(),
                digest,
                size,
                platform: None,
            })
        };
        let config = describe(&entry.config)?;
        let layers: Vec<Descriptor> = entry
            .layers
            .iter()
            .map(|l| describe(l))
            .collect::<Result<_, _>>()?;
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
        let tags = entry.repo_tags.unwrap_or_default();
        Ok(LocalImage {
            names: tags.iter().filter_map(|t| t.parse().ok()).collect(),
            label: None,
            manifest: manifest.to_string().into_bytes(),
            local: self.clone(),
            blobs,
        })
    }

    fn json<T: for<'a> Deserialize<'a>>(&self, member: &str) -> Result<Option<T>, OpenError> {
        if !self.has(member) {
            return Ok(None);
        }
        let bytes = self.small(member)?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| OpenError::Parse {
                path: self.path.clone(),
                member: member.to_owned(),
                source,
            })
    }

    fn has(&self, member: &str) -> bool {
        match &self.members {
            Some(members) => members.contains_key(member),
            None => self.path.join(member).is_file(),
        }
    }

    fn reader(&self, member: &str) -> io::Result<Box<dyn Read + Send>> {
        let Some(members) = &self.members else {
            return Ok(Box::new(File::open(self.path.join(member))?));
        };
        let (offset, size) = members
            .get(member)
            .ok_or_else(|| io::Error::other(format!("no member {member}")))?;
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(*offset))?;
        Ok(Box::new(file.take(*size)))
    }

    fn small(&self, member: &str) -> Result<Vec<u8>, OpenError> {
        let mut bytes = Vec::new();
        let read = self
            .reader(member)
            .and_then(|r| r.take(MAX_BYTES).read_to_end(&mut bytes));
        read.map(|_| bytes).map_err(|source| OpenError::Read {
            path: self.path.join(member),
            source,
        })
    }

    fn digest(&self, member: &str) -> Result<(String, u64), OpenError> {
        let mut hash = Sha256::new();
        let copied = self
            .reader(member)
            .and_then(|mut r| io::copy(&mut r, &mut hash));
        let size = copied.map_err(|source| OpenError::Read {
            path: self.path.join(member),
            source,
        })?;
        Ok((format!("sha256:{}", hex(&hash.finalize())), size))
    }

    fn invalid(&self, reason: String) -> OpenError {
        OpenError::Read {
            path: self.path.clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, reason),
        }
    }
}

/// Where each regular member of the tar lies; links among them (older `docker save`) are resolved.
fn index_tar(path: &Path) -> io::Result<HashMap<String, (u64, u64)>> {
    let mut members = Members::new(Counting {
        inner: io::BufReader::new(File::open(path)?),
        position: 0,
    });
    let (mut found, mut links) = (HashMap::new(), Vec::new());
    while let Some(member) = members.next()? {
        let name = String::from_utf8_lossy(&member.path)
            .trim_start_matches("./")
            .to_owned();
        match member.header.entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                found.insert(name, (members.get_ref().position, member.size));
            }
            tar::EntryType::Link | tar::EntryType::Symlink => {
                let target = String::from_utf8_lossy(&member.link).into_owned();
                links.push((name, target));
            }
            _ => {}
        }
    }
    for (name, target) in links {
        // `ID/layer.tar` links to `../ID/layer.tar`.
        let target = target.trim_start_matches("../");
        if let Some(place) = found.get(target).copied() {
            found.insert(name, place);
        }
    }
    Ok(found)
}

struct Counting<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.position += n as u64;
        Ok(n)
    }
}

#[async_trait]
impl Source for LocalImage {
    async fn manifest(&self, digest: Option<&str>) -> Result<(Vec<u8>, String), Error> {
        let Some(wanted) = digest else {
            return Ok((self.manifest.clone(), self.digest()));
        };
        let hex_digits = digest_hex(wanted).map_err(|e| self.corrupt(wanted, e.to_string()))?;
        let bytes = self.local.small(&format!("blobs/sha256/{hex_digits}"));
        let bytes = bytes.map_err(|e| self.corrupt(wanted, e.to_string()))?;
        let is = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        match is == wanted {
            true => Ok((bytes, is)),
            false => Err(self.corrupt(wanted, format!("its digest is {is}"))),
        }
    }

    async fn blob(
        &self,
        blob: &Descriptor,
        file: &mut tokio::fs::File,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let hex_digits =
            digest_hex(&blob.digest).map_err(|e| self.corrupt(&blob.digest, e.to_string()))?;
        let member = self.blobs.get(&blob.digest).cloned();
        let member = member.unwrap_or_else(|| format!("blobs/sha256/{hex_digits}"));
        let local = |source| Error::Local {
            what: blob.digest.clone(),
            source,
        };
        let reader = self
            .local
            .reader(&member)
            .map_err(|e| self.corrupt(&blob.digest, e.to_string()))?;
        let mut target = file.try_clone().await.map_err(local)?.into_std().await;
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        // One byte more than is promised tells that there are more.
        let mut reader = reader.take(blob.size.saturating_add(1));
        let copying = tokio::task::spawn_blocking(move || {
            let mut both = Hashed {
                inner: &mut target,
                hash: Sha256::new(),
            };
            let mut have = 0;
            loop {
                match io::copy(&mut reader.by_ref().take(STEP), &mut both)? {
                    0 => return Ok((have, hex(&both.hash.finalize()))),
                    bytes => {
                        have += bytes;
                        // Nobody listens any more when the pull was given up.
                        let _ = tell.send(bytes);
                    }
                }
            }
        });
        while let Some(bytes) = told.recv().await {
            progress.event(Event::Downloaded { bytes });
        }
        let copied = copying.await.map_err(|e| local(io::Error::other(e)))?;
        let (have, digest) = copied.map_err(local)?;
        if have != blob.size {
            let reason = format!("it doesn't have the {} bytes that are promised", blob.size);
            return Err(self.corrupt(&blob.digest, reason));
        }
        match digest == hex_digits {
            true => Ok(()),
            false => Err(self.corrupt(&blob.digest, format!("its digest is sha256:{digest}"))),
        }
    }

    async fn signatures(&self, _: &str) -> Result<Vec<Signature>, Error> {
        Ok(Vec::new())
    }
}

impl LocalImage {
    /// Of the image, or of its index: `sha256:…`.
    pub fn digest(&self) -> String {
        format!("sha256:{}", hex(&Sha256::digest(&self.manifest)))
    }

    /// The same image with other names.
    pub(super) fn with_names(&self, names: Vec<Reference>) -> Self {
        Self {
            names,
            ..self.clone()
        }
    }

    /// Whether both have the same manifest.
    pub fn is_same(&self, other: &Self) -> bool {
        self.manifest == other.manifest
    }

    fn corrupt(&self, what: &str, reason: String) -> Error {
        Error::Corrupt {
            place: self.local.path.display().to_string(),
            what: what.to_owned(),
            reason,
        }
    }
}

struct Hashed<W> {
    inner: W,
    hash: Sha256,
}

impl<W: io::Write> io::Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
