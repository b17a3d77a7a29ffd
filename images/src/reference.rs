//! Names of images in registries, normalised as Docker does: `busybox` is `docker.io/library/busybox:latest`.
//!
//! - [`grammar`]: what is a name, and its parts

mod grammar;

use std::fmt;
use std::str::FromStr;

/// A registry image reference: registry, repository, and a tag or digest (or both; then the digest decides).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    inner: oci_client::Reference,
}

/// Why a string is no image reference.
#[derive(Debug, thiserror::Error)]
#[error("{input:?} is not a valid image reference")]
pub struct ParseError {
    /// What was given.
    pub input: String,
    /// What is wrong with it.
    #[source]
    pub source: oci_client::ParseError,
}

impl Reference {
    /// The registry's host and port as users write it, e.g. `docker.io`, `registry.hpk.test:5000`.
    pub fn registry(&self) -> &str {
        self.inner.registry()
    }

    /// The registry as policies and logins know it: see [`host_known_as`].
    pub(crate) fn host(&self) -> String {
        host_known_as(self.registry())
    }

    /// The repository, e.g. `library/busybox`.
    pub fn repository(&self) -> &str {
        self.inner.repository()
    }

    /// The tag, if one was given or implied (`latest` is implied only where no digest was given either).
    pub fn tag(&self) -> Option<&str> {
        self.inner.tag()
    }

    /// The digest, e.g. `sha256:…`, if one was given.
    pub fn digest(&self) -> Option<&str> {
        self.inner.digest()
    }

    /// The same repository by digest; the form of Kubernetes' `imageID`.
    pub fn with_digest(&self, digest: &str) -> Reference {
        Reference {
            inner: self.inner.clone_with_digest(digest.to_owned()),
        }
    }

    /// Whether Kubernetes' default pull policy for it is Always: the tag is `latest` and there is no digest.
    pub fn is_latest(&self) -> bool {
        self.digest().is_none() && self.tag() == Some("latest")
    }
}

/// A registry's one name among several that lead to it: in lower case, and `docker.io` for all of Docker's hub.
pub(crate) fn host_known_as(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
            "docker.io".to_owned()
        }
        _ => host,
    }
}

impl FromStr for Reference {
    type Err = ParseError;

    /// Takes `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`, with `docker://` before it or not.
    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let name = input.strip_prefix("docker://").unwrap_or(input);
        match grammar::parse(name) {
            Ok(inner) => Ok(Reference { inner }),
            Err(source) => Err(ParseError {
                input: input.to_owned(),
                source,
            }),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(name: &str) -> String {
        name.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_are_completed_as_docker_does() {
        assert_eq!(full("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(full("user/app:1"), "docker.io/user/app:1");
        assert_eq!(full("localhost/app"), "localhost/app:latest");
        assert_eq!(full("reg:5000/a/b:c"), "reg:5000/a/b:c");
        assert_eq!(full("docker://nginx:1.27"), "docker.io/library/nginx:1.27");
        assert_eq!(
            full("index.docker.io/library/nginx"),
            "docker.io/library/nginx:latest"
        );
    }

    #[test]
    fn a_host_has_one_name_for_policies_and_logins() {
        let host = |name: &str| name.parse::<Reference>().unwrap().host();
        assert_eq!(host("registry-1.docker.io/library/x"), "docker.io");
        assert_eq!(host("Index.Docker.io/library/x"), "docker.io");
        assert_eq!(host("Quay.IO:443/x"), "quay.io:443");
    }

    #[test]
    fn a_digest_implies_no_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let reference: Reference = format!("busybox@{digest}").parse().unwrap();
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.digest(), Some(digest.as_str()));
        assert!(!reference.is_latest());
    }

    #[test]
    fn tag_and_digest_may_stand_together() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let reference: Reference = format!("busybox:1@{digest}").parse().unwrap();
        assert_eq!(
            (reference.tag(), reference.digest()),
            (Some("1"), Some(digest.as_str()))
        );
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        for bad in ["", "UPPER/case", "a b", "x@sha256:12", "-x", "a//b"] {
            let error = bad.parse::<Reference>().unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }
}
