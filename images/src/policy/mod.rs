//! `policy.json`: which images may be taken, in the containers' form (containers-policy.json(5)).
//!
//! ```json
//! {"default": [{"type": "reject"}],
//!  "transports": {"docker": {"quay.io/team": [{"type": "sigstoreSigned", "keyPath": "/home/u/team.pub"}],
//!                            "docker.io": [{"type": "insecureAcceptAnything"}]}}}
//! ```
//!
//! An image is judged when it comes into the store. The most particular scope decides alone, and all its requirements
//! must hold. `sigstoreSigned` with keys is checked (`signature`); what can't be checked here, such as GPG's `signedBy`, is
//! refused when an image asks for it: never passed over.

mod form;
pub mod signature;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use form::FormError;
use signature::{Key, Signature};

use crate::reference::Reference;

/// The parsed file. The default takes everything, as where there is no file.
#[derive(Debug, Clone)]
pub struct Policy {
    default: Vec<Requirement>,
    /// By transport and scope; the scope "" is the transport's own default.
    transports: HashMap<String, HashMap<String, Vec<Requirement>>>,
}

#[derive(Debug, Clone)]
enum Requirement {
    Accept,
    Reject,
    Sigstore {
        keys: Vec<Key>,
        identity: Identity,
    },
    /// In words, what can't be checked.
    Uncheckable(String),
}

/// What a signature must say of the image's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    /// The same name; where the image is named by digest, the same repository.
    RepoDigestOrExact,
    Exact,
    Repository,
}

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It isn't what it should be.
    #[error("{path} can't be used as a policy")]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormError,
    },
}

/// An image that may not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// By its name alone.
    #[error("policy.json rejects it (scope {scope:?})")]
    Rejected {
        /// What decided.
        scope: String,
    },
    /// It has no signature at all.
    #[error(
        "policy.json wants a signature (scope {scope:?}), and it has none: its registry has no tag {}",
        .tags.join(" or ")
    )]
    Unsigned {
        /// What decided.
        scope: String,
        /// Where signatures would be.
        tags: Vec<String>,
    },
    /// It can't have one.
    #[error(
        "policy.json wants a signature (scope {scope:?}), which only a registry's image can have"
    )]
    Unsignable {
        /// What decided.
        scope: String,
    },
    /// None of its signatures will do.
    #[error("policy.json wants a signature (scope {scope:?}), and none of its {} will do: {}", .reasons.len(), .reasons.join("; "))]
    BadSignatures {
        /// What decided.
        scope: String,
        /// For each signature.
        reasons: Vec<String>,
    },
    /// The policy wants what can't be checked here.
    #[error(
        "policy.json wants {what} (scope {scope:?}), which can't be checked here: use sigstoreSigned with keyPath"
    )]
    Uncheckable {
        /// What decided.
        scope: String,
        /// The requirement.
        what: String,
    },
}

/// Where an image comes from: a transport with the scopes it has.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// `docker`: the scopes are the image's own name and what encloses it.
    Registry,
    /// `docker-archive`, `oci-archive` or `oci`, and an absolute path without symbolic links.
    Local {
        /// Transport.
        transport: &'a str,
        /// File or folder.
        path: &'a Path,
        /// In a layout.
        tag: Option<&'a str>,
    },
}

/// What is left to be asked about an image.
#[derive(Debug)]
pub struct Wanted<'a> {
    scope: String,
    /// A signature is wanted for each.
    sigstore: Vec<(&'a [Key], Identity)>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            default: vec![Requirement::Accept],
            transports: HashMap::new(),
        }
    }
}

impl Policy {
    /// Reads the file and the keys that it names; no file is as good as one that takes everything.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let json = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })?,
        };
        form::parse(&json).map_err(|source| Error::Form {
            path: path.to_owned(),
            source,
        })
    }

    /// Judges an image by its origin and name: None where it may be taken as it is.
    ///
    /// # Errors
    /// Where it may not be taken, whatever signatures it has.
    pub fn judge(
        &self,
        origin: Origin<'_>,
        reference: &Reference,
    ) -> Result<Option<Wanted<'_>>, Refusal> {
        let (transport, scopes) = origin.scopes(reference);
        self.judge_scopes(transport, scopes)
    }

    /// The same for what only a transport and scopes, the most particular first, tell of.
    pub fn judge_scopes(
        &self,
        transport: &str,
        scopes: Vec<String>,
    ) -> Result<Option<Wanted<'_>>, Refusal> {
        let (scope, requirements) = self.requirements(transport, scopes);
        let mut sigstore = Vec::new();
        for requirement in requirements {
            let scope = scope.clone();
            match requirement {
                Requirement::Accept => {}
                Requirement::Reject => return Err(Refusal::Rejected { scope }),
                Requirement::Uncheckable(what) => {
                    let what = what.clone();
                    return Err(Refusal::Uncheckable { scope, what });
                }
                Requirement::Sigstore { keys, identity } => {
                    sigstore.push((keys.as_slice(), *identity));
                }
            }
        }
        let wanted = !sigstore.is_empty();
        Ok(wanted.then_some(Wanted { scope, sigstore }))
    }

    fn requirements(&self, transport: &str, scopes: Vec<String>) -> (String, &[Requirement]) {
        if let Some(known) = self.transports.get(transport) {
            for scope in scopes.into_iter().chain([String::new()]) {
                if let Some(requirements) = known.get(&scope) {
                    return (format!("{transport}:{scope}"), requirements);
                }
            }
        }
        ("default".to_owned(), &self.default)
    }
}

impl Wanted<'_> {
    /// For what can't have a signature.
    pub fn unmet(&self) -> Refusal {
        Refusal::Unsignable {
            scope: self.scope.clone(),
        }
    }

    /// Whether the signatures that the image has are what is wanted, for one of `digests`: those of the index that the name
    /// leads to, and of the image in it.
    pub fn check(
        &self,
        reference: &Reference,
        digests: &[&str],
        signatures: &[Signature],
    ) -> Result<(), Refusal> {
        let scope = self.scope.clone();
        if signatures.is_empty() {
            let tags = digests
                .iter()
                .map(|digest| signature::tag(digest))
                .collect();
            return Err(Refusal::Unsigned { scope, tags });
        }
        for (keys, identity) in &self.sigstore {
            let mut reasons = Vec::new();
            let good = signatures.iter().any(|signature| {
                let names = |signed: &str| identity.accepts(signed, reference);
                match signature.check(keys, digests, names) {
                    Ok(()) => true,
                    Err(reason) => {
                        reasons.push(reason.to_string());
                        false
                    }
                }
            });
            if !good {
                return Err(Refusal::BadSignatures { scope, reasons });
            }
        }
        Ok(())
    }
}

impl Identity {
    fn accepts(self, signed: &str, wanted: &Reference) -> bool {
        let Ok(parsed) = signed.parse::<Reference>() else {
            return false;
        };
        let same_repository =
            (parsed.host(), parsed.repository()) == (wanted.host(), wanted.repository());
        // A signature for a bare repository, as cosign makes them, is not one for its tag `latest`.
        let last = signed.rsplit('/').next().unwrap_or_default();
        let exact = same_repository
            && last.contains([':', '@'])
            && (parsed.tag(), parsed.digest()) == (wanted.tag(), wanted.digest());
        match self {
            Self::Repository => same_repository,
            Self::Exact => exact,
            Self::RepoDigestOrExact if wanted.digest().is_some() => same_repository,
            Self::RepoDigestOrExact => exact,
        }
    }
}

impl<'a> Origin<'a> {
    /// The transport, and the scopes that could decide, the most particular first.
    fn scopes(self, reference: &Reference) -> (&'a str, Vec<String>) {
        match self {
            Self::Registry => ("docker", name_scopes(reference)),
            Self::Local {
                transport,
                path,
                tag,
            } => {
                let tag = tag.filter(|_| transport == "oci");
                let tagged = tag.map(|tag| format!("{}:{tag}", path.display()));
                let folders = path.ancestors().map(|path| path.display().to_string());
                (transport, tagged.into_iter().chain(folders).collect())
            }
        }
    }
}

/// `host/a/b:tag`, `host/a/b`, `host/a`, `host`, `*.domain` …; the domains are without a port.
fn name_scopes(reference: &Reference) -> Vec<String> {
    let (host, repository) = (reference.host(), reference.repository());
    let mut scopes = vec![match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{host}/{repository}@{digest}"),
        (None, tag) => format!("{host}/{repository}:{}", tag.unwrap_or("latest")),
    }];
    let mut name = format!("{host}/{repository}");
    loop {
        scopes.push(name.clone());
        let Some((parent, _)) = name.rsplit_once('/') else {
            break;
        };
        name = parent.to_owned();
    }
    // An IPv6 address has no domain.
    let is_address = host.starts_with('[');
    let mut domain = match host.split_once(':') {
        _ if is_address => "",
        Some((domain, _port)) => domain,
        None => &host,
    };
    while let Some((_, rest)) = domain.split_once('.') {
        scopes.push(format!("*.{rest}"));
        domain = rest;
    }
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Policy {
        form::parse(json.as_bytes()).unwrap()
    }

    fn verdict(policy: &Policy, name: &str) -> Result<bool, Refusal> {
        let reference: Reference = name.parse().unwrap();
        let judged = policy.judge(Origin::Registry, &reference);
        judged.map(|wanted| wanted.is_none())
    }

    #[test]
    fn the_most_particular_scope_decides_alone() {
        let policy = policy(
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{
                "docker.io/library":[{"type":"insecureAcceptAnything"}],
                "docker.io/library/bad:1":[{"type":"reject"}],
                "*.example.org":[{"type":"insecureAcceptAnything"}],
                "a.example.org/secret":[{"type":"insecureAcceptAnything"},{"type":"reject"}]}}}"#,
        );
        let taken = |name| verdict(&policy, name);
        assert_eq!(taken("busybox"), Ok(true));
        assert_eq!(taken("bad:2"), Ok(true));
        assert!(taken("bad:1").is_err());
        assert_eq!(taken("a.example.org/x"), Ok(true));
        assert_eq!(taken("b.a.example.org/x/y"), Ok(true));
        assert!(taken("example.org/x").is_err());
        let refusal = taken("a.example.org/secret/x").unwrap_err();
        assert_eq!(
            refusal,
            Refusal::Rejected {
                scope: "docker:a.example.org/secret".to_owned()
            }
        );
        let refusal = taken("quay.io/x").unwrap_err().to_string();
        assert!(refusal.contains("default"), "{refusal}");
    }

    #[test]
    fn a_scope_ends_where_a_name_does() {
        let policy = policy(
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{
                "quay.io/team":[{"type":"insecureAcceptAnything"}]}}}"#,
        );
        assert_eq!(verdict(&policy, "quay.io/team/app"), Ok(true));
        assert!(verdict(&policy, "quay.io/teams/app").is_err());
    }

    #[test]
    fn a_registry_is_known_by_its_domain_and_by_each_of_its_names() {
        let policy = policy(
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{
                "*.example.org":[{"type":"insecureAcceptAnything"}],
                "docker.io/library":[{"type":"insecureAcceptAnything"}]}}}"#,
        );
        for name in [
            "a.example.org:5000/x",
            "A.Example.Org/x",
            "registry-1.docker.io/library/x",
            "Docker.io/library/x",
        ] {
            assert_eq!(verdict(&policy, name), Ok(true), "{name}");
        }
        assert!(verdict(&policy, "registry-1.docker.io/team/x").is_err());
        assert!(verdict(&policy, "a.example.org.evil:5000/x").is_err());
    }

    #[test]
    fn what_cannot_be_checked_is_refused_and_named() {
        let policy =
            policy(r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}"#);
        let refusal = verdict(&policy, "busybox").unwrap_err().to_string();
        assert!(refusal.contains("signedBy"), "{refusal}");
    }

    #[test]
    fn a_local_file_has_its_folders_as_scopes() {
        let policy = policy(
            r#"{"default":[{"type":"reject"}],"transports":{
                "oci-archive":{"/data":[{"type":"insecureAcceptAnything"}]},
                "oci":{"/layout:1":[{"type":"insecureAcceptAnything"}]}}}"#,
        );
        let reference: Reference = "x".parse().unwrap();
        let judged = |transport, path: &str| {
            let origin = Origin::Local {
                transport,
                path: Path::new(path),
                tag: Some("1"),
            };
            policy.judge(origin, &reference).is_ok()
        };
        assert!(judged("oci", "/layout") && !judged("oci", "/layout2"));
        assert!(judged("oci-archive", "/data/a/x.tar"));
        assert!(!judged("oci-archive", "/database/x.tar"));
        assert!(!judged("docker-archive", "/data/a/x.tar"));
    }

    #[test]
    fn names_match_as_the_policy_says() {
        let accepts = |identity: Identity, signed: &str, wanted: &str| {
            identity.accepts(signed, &wanted.parse().unwrap())
        };
        let digest = format!("r/a@sha256:{}", "1".repeat(64));
        let strict = Identity::RepoDigestOrExact;
        assert!(accepts(strict, "r/a:1", "r/a:1"));
        assert!(!accepts(strict, "r/a:2", "r/a:1"));
        assert!(!accepts(strict, "r/a", "r/a:latest"));
        assert!(!accepts(strict, "R!", "r/a:1"));
        assert!(accepts(strict, "r/a:2", &digest));
        assert!(!accepts(strict, "r/b:2", &digest));
        assert!(!accepts(Identity::Exact, "r/a:2", &digest));
        assert!(accepts(Identity::Repository, "r/a:2", "r/a:1"));
        assert!(!accepts(Identity::Repository, "q/a:1", "r/a:1"));
    }

    #[test]
    fn without_a_file_everything_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let policy = Policy::load(&dir.path().join("policy.json")).unwrap();
        assert_eq!(verdict(&policy, "busybox"), Ok(true));
    }
}
