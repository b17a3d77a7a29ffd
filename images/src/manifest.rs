//! Image manifests and indexes, in OCI's and Docker's (schema 2) form, as far as a puller needs them.

use serde::{Deserialize, Serialize};

use crate::limits::LAYERS;

/// Media types a registry is asked for; [`parse`] takes these.
pub const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Manifests and configs larger than this are refused (distribution-spec: a registry should take at least 4 MiB).
pub const MAX_BYTES: u64 = 8 << 20;

/// A blob by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// In an index: what it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// What an image runs on, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH.
    pub architecture: String,
    /// GOOS.
    pub os: String,
    /// E.g. `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// One image's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The image's config.
    pub config: Descriptor,
    /// Layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    /// Compressed bytes of all layers, as the manifest has it, which may claim anything.
    pub fn layers_size(&self) -> u64 {
        let sizes = self.layers.iter().map(|l| l.size);
        sizes.fold(0, u64::saturating_add)
    }
}

/// What a reference may resolve to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Image(Manifest),
    /// Images by platform.
    Index(Vec<Descriptor>),
}

/// Why a manifest can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON of a known form.
    #[error("parsing the manifest")]
    Parse(#[source] serde_json::Error),
    /// Docker's schema 1, or something else.
    #[error("manifest of schema version {version}, media type {media_type:?}, is not supported")]
    Unsupported {
        /// `schemaVersion`.
        version: u64,
        /// `mediaType`.
        media_type: String,
    },
    /// More layers than [`LAYERS`].
    #[error("the image has {0} layers, the limit is {LAYERS}")]
    TooManyLayers(usize),
    /// The index has nothing for this machine.
    #[error("the image has no variant for {wanted}, only for {offered}")]
    NoPlatform {
        /// This machine.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// A digest that isn't `sha256:` and 64 hex digits; it would become a file name.
    #[error("digest {0:?} is not a sha256 digest")]
    Digest(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    media_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

/// Parses a manifest or an index.
pub fn parse(bytes: &[u8]) -> Result<Document, Error> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(Error::Parse)?;
    let document = match raw {
        Raw {
            schema_version: 2,
            config: Some(config),
            layers: Some(layers),
            manifests: None,
            ..
        } => Document::Image(Manifest { config, layers }),
        Raw {
            schema_version: 2,
            config: None,
            layers: None,
            manifests: Some(manifests),
            ..
        } => Document::Index(manifests),
        Raw {
            schema_version,
            media_type,
            ..
        } => {
            return Err(Error::Unsupported {
                version: schema_version,
                media_type,
            });
        }
    };
    if let Document::Image(image) = &document
        && image.layers.len() > LAYERS
    {
        return Err(Error::TooManyLayers(image.layers.len()));
    }
    let digests: Vec<&Descriptor> = match &document {
        Document::Image(m) => m.layers.iter().chain([&m.config]).collect(),
        Document::Index(manifests) => manifests.iter().collect(),
    };
    for descriptor in digests {
        digest_hex(&descriptor.digest)?;
    }
    Ok(document)
}

/// The hex digits of a sha256 digest.
pub fn digest_hex(digest: &str) -> Result<&str, Error> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
        .ok_or_else(|| Error::Digest(digest.to_owned()))
}

/// This machine's GOARCH.
pub fn machine_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Whether an image runs here that no index names the platform of, by what its config says; one that says nothing does. As
/// in containerd, a processor's 32-bit programs do, too.
pub fn check_platform(os: Option<&str>, architecture: Option<&str>) -> Result<(), Error> {
    check_platform_for(machine_architecture(), os, architecture)
}

fn check_platform_for(
    machine: &str,
    os: Option<&str>,
    architecture: Option<&str>,
) -> Result<(), Error> {
    let [os, architecture] = [(os, "linux"), (architecture, machine)]
        .map(|(said, default)| said.filter(|it| !it.is_empty()).unwrap_or(default));
    let plain = match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let runs = plain == machine || matches!((plain, machine), ("386", "amd64") | ("arm", "arm64"));
    match os == "linux" && runs {
        true => Ok(()),
        false => Err(Error::NoPlatform {
            wanted: format!("linux/{machine}"),
            offered: format!("{os}/{architecture}"),
        }),
    }
}

/// The entry of an index for linux on `architecture`: the first without a variant, else the first.
///
/// An entry without a platform is taken only where it is the only one.
pub fn choose<'a>(entries: &'a [Descriptor], architecture: &str) -> Result<&'a Descriptor, Error> {
    if let [only] = entries
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let fits = |p: &Platform| p.os == "linux" && p.architecture == architecture;
    let mut fitting = entries
        .iter()
        .filter(|e| e.platform.as_ref().is_some_and(fits));
    let plain = fitting
        .clone()
        .find(|e| e.platform.as_ref().is_some_and(|p| p.variant.is_none()));
    plain
        .or_else(|| fitting.next())
        .ok_or_else(|| Error::NoPlatform {
            wanted: format!("linux/{architecture}"),
            offered: entries
                .iter()
                .filter_map(|e| e.platform.as_ref())
                .map(|p| format!("{}/{}", p.os, p.architecture))
                .collect::<Vec<_>>()
                .join(", "),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: Option<(&str, &str, Option<&str>)>, digit: char) -> Descriptor {
        Descriptor {
            media_type: ACCEPTED[0].into(),
            digest: format!("sha256:{}", digit.to_string().repeat(64)),
            size: 1,
            platform: platform.map(|(os, architecture, variant)| Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.map(str::to_owned),
            }),
        }
    }

    #[test]
    fn an_image_without_an_index_is_for_the_machine_that_its_config_says() {
        let check = |machine, os, architecture| check_platform_for(machine, os, architecture);
        for (machine, architecture) in [
            ("amd64", Some("amd64")),
            ("amd64", Some("x86_64")),
            ("amd64", Some("386")),
            ("arm64", Some("arm")),
            ("arm64", Some("")),
            ("arm64", None),
        ] {
            assert!(check(machine, Some("linux"), architecture).is_ok());
            assert!(check(machine, None, architecture).is_ok());
        }
        for (os, architecture) in [("windows", "amd64"), ("linux", "s390x"), ("linux", "arm")] {
            let error = check("amd64", Some(os), Some(architecture)).unwrap_err();
            let offered = format!("only for {os}/{architecture}");
            assert!(error.to_string().contains(&offered), "{error}");
        }
    }

    #[test]
    fn the_machines_platform_is_chosen() {
        let index = [
            entry(Some(("windows", "amd64", None)), '1'),
            entry(Some(("linux", "amd64", Some("v3"))), '2'),
            entry(Some(("linux", "amd64", None)), '3'),
            entry(Some(("unknown", "unknown", None)), '4'),
        ];
        assert_eq!(choose(&index, "amd64").unwrap(), &index[2]);
        assert_eq!(choose(&index[..2], "amd64").unwrap(), &index[1]);
        let error = choose(&index, "arm64").unwrap_err().to_string();
        assert!(
            error.contains("linux/arm64") && error.contains("windows/amd64"),
            "{error}"
        );
    }

    #[test]
    fn a_single_entry_needs_no_platform() {
        let index = [entry(None, '1')];
        assert_eq!(choose(&index, "amd64").unwrap(), &index[0]);
    }

    #[test]
    fn schema_one_is_refused_by_name() {
        let error = parse(br#"{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}"#);
        assert!(error.unwrap_err().to_string().contains("schema version 1"));
    }

    #[test]
    fn layers_beyond_number_or_size_are_refused_or_borne() {
        let blob = entry(None, '1');
        let image = |layers: Vec<Descriptor>| Manifest {
            config: blob.clone(),
            layers,
        };
        let many = image(vec![blob.clone(); LAYERS + 1]);
        let mut json = serde_json::to_value(&many).unwrap();
        json["schemaVersion"] = 2.into();
        let error = parse(json.to_string().as_bytes()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the image has 513 layers, the limit is 512"
        );
        let huge = Descriptor {
            size: u64::MAX,
            ..blob.clone()
        };
        assert_eq!(image(vec![huge.clone(), huge]).layers_size(), u64::MAX);
    }

    #[test]
    fn a_digest_that_is_a_path_is_refused() {
        let json =
            r#"{"schemaVersion":2,"config":{"digest":"sha256:../../x","size":1},"layers":[]}"#;
        assert!(matches!(parse(json.as_bytes()), Err(Error::Digest(_))));
    }
}
