//! One sigstore signature of an image, as cosign and skopeo attach it: a "simple signing" document, and its signature by a
//! key (<https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md>). What of it is only an optional claim is not
//! looked at.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use serde::Deserialize;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The media type of a layer that is a signed document.
pub const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// The layer's annotation that holds the signature, in base64.
pub const ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// Longest document, bytes; usual are 300.
pub const MAX_BYTES: u64 = 1 << 20;

/// Most signatures of one image that are looked at.
pub const MAX_COUNT: usize = 64;

/// The tag that cosign and skopeo attach the signatures of `digest` under.
pub fn tag(digest: &str) -> String {
    format!("{}.sig", digest.replace(':', "-"))
}

/// What the document must say it is.
const DOCUMENT: &str = "cosign container image signature";

/// A public key.
#[derive(Clone)]
pub struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?}, {} bytes)", self.algorithm, self.bytes.len())
    }
}

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not PEM of a public key.
    #[error("it is no PEM file with a PUBLIC KEY")]
    Pem,
    /// Another algorithm.
    #[error("its algorithm is not one of ECDSA on P-256 or P-384, RSA, Ed25519")]
    Algorithm,
}

/// A signature that an image has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The signed document.
    pub document: Vec<u8>,
    /// The signature over it, in base64.
    pub base64: String,
}

/// Why a signature won't do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// By none of the keys.
    #[error("it is by none of the keys")]
    Key,
    /// The signature isn't base64.
    #[error("it is not base64")]
    Base64,
    /// The document isn't of the form.
    #[error("its document is not one of cosign's: {0}")]
    Document(String),
    /// Another image's.
    #[error("it is for the image {0}")]
    Digest(String),
    /// Another name's.
    #[error("it is for the name {0:?}")]
    Name(String),
}

#[derive(Deserialize)]
struct Document {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Image,
    identity: Named,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "docker-reference")]
    reference: String,
}

impl Key {
    /// Takes a PEM file's bytes: one `PUBLIC KEY` (RFC 7468, section 13).
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| KeyError::Pem)?;
        if pem.label != "PUBLIC KEY" {
            return Err(KeyError::Pem);
        }
        let (_, info) = SubjectPublicKeyInfo::from_der(&pem.contents).map_err(|_| KeyError::Pem)?;
        let curve = || info.algorithm.parameters.as_ref()?.as_oid().ok();
        let curve = curve().map(|oid| oid.to_id_string());
        let algorithm: &'static dyn VerificationAlgorithm = match (
            info.algorithm.algorithm.to_id_string().as_str(),
            curve.as_deref(),
        ) {
            ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => &ECDSA_P256_SHA256_ASN1,
            ("1.2.840.10045.2.1", Some("1.3.132.0.34")) => &ECDSA_P384_SHA256_ASN1,
            ("1.2.840.113549.1.1.1", _) => &RSA_PKCS1_2048_8192_SHA256,
            ("1.3.101.112", _) => &ED25519,
            _ => return Err(KeyError::Algorithm),
        };
        Ok(Self {
            algorithm,
            bytes: info.subject_public_key.data.into_owned(),
        })
    }

    fn signed(&self, document: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.bytes)
            .verify(document, signature)
            .is_ok()
    }
}

impl Signature {
    /// Whether it is by one of `keys`, for one of `digests`, and for a name that `names` accepts.
    pub fn check(
        &self,
        keys: &[Key],
        digests: &[&str],
        names: impl Fn(&str) -> bool,
    ) -> Result<(), Unfit> {
        let signature = STANDARD.decode(self.base64.trim());
        let signature = signature.map_err(|_| Unfit::Base64)?;
        // Nothing of the document is read before it is known to be the signer's.
        if !keys
            .iter()
            .any(|key| key.signed(&self.document, &signature))
        {
            return Err(Unfit::Key);
        }
        let document: Document = serde_json::from_slice(&self.document)
            .map_err(|error| Unfit::Document(error.to_string()))?;
        let critical = document.critical;
        if critical.kind != DOCUMENT {
            return Err(Unfit::Document(format!("its type is {:?}", critical.kind)));
        }
        if !digests.contains(&critical.image.digest.as_str()) {
            return Err(Unfit::Digest(critical.image.digest));
        }
        match names(&critical.identity.reference) {
            true => Ok(()),
            false => Err(Unfit::Name(critical.identity.reference)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:aa";

    fn document(kind: &str, digest: &str, name: &str) -> String {
        format!(
            r#"{{"critical":{{"type":"{kind}","image":{{"docker-manifest-digest":"{digest}"}},
                "identity":{{"docker-reference":"{name}"}}}},"optional":null}}"#
        )
    }

    fn sign(key: &rcgen::KeyPair, document: &str) -> Signature {
        use rcgen::SigningKey as _;
        Signature {
            document: document.as_bytes().to_vec(),
            base64: STANDARD.encode(key.sign(document.as_bytes()).unwrap()),
        }
    }

    #[test]
    fn only_a_signature_by_the_key_for_the_image_and_the_name_will_do() {
        let (ours, theirs) = (
            rcgen::KeyPair::generate().unwrap(),
            rcgen::KeyPair::generate().unwrap(),
        );
        let key = Key::from_pem(ours.public_key_pem().as_bytes()).unwrap();
        let is_a = |name: &str| name == "r.io/a:1";
        let check =
            |signature: &Signature| signature.check(std::slice::from_ref(&key), &[DIGEST], is_a);
        let good = document(DOCUMENT, DIGEST, "r.io/a:1");
        assert_eq!(check(&sign(&ours, &good)), Ok(()));
        assert_eq!(check(&sign(&theirs, &good)), Err(Unfit::Key));
        let mut changed = sign(&ours, &good);
        changed.document.push(b' ');
        assert_eq!(check(&changed), Err(Unfit::Key));
        changed.base64 = "?".to_owned();
        assert_eq!(check(&changed), Err(Unfit::Base64));
        for (kind, digest, name, word) in [
            ("atomic container signature", DIGEST, "r.io/a:1", "atomic"),
            (DOCUMENT, "sha256:bb", "r.io/a:1", "sha256:bb"),
            (DOCUMENT, DIGEST, "r.io/b:1", "r.io/b:1"),
            (DOCUMENT, DIGEST, "R!", "R!"),
        ] {
            let signature = sign(&ours, &document(kind, digest, name));
            let reason = check(&signature).unwrap_err().to_string();
            assert!(reason.contains(word), "{reason}");
        }
        let reason = check(&sign(&ours, "[]")).unwrap_err();
        assert!(matches!(reason, Unfit::Document(_)), "{reason}");
    }

    #[test]
    fn keys_of_each_algorithm_are_taken_and_others_refused() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ] {
            let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
            Key::from_pem(pair.public_key_pem().as_bytes()).unwrap();
        }
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let private = pair.serialize_pem();
        assert!(matches!(
            Key::from_pem(private.as_bytes()),
            Err(KeyError::Pem)
        ));
        assert!(matches!(Key::from_pem(b""), Err(KeyError::Pem)));
    }
}
