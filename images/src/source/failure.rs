//! A registry's failures: what they mean, and how long to wait after them. Pure.

use std::time::Duration;

use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};

/// Between the first two attempts, then twice as long each time.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The same where the registry says that it is asked too often. (Its Retry-After isn't passed on by the crate.)
const FIRST_BUSY_PAUSE: Duration = Duration::from_secs(2);

/// The registry answers, and asks for patience.
pub fn is_busy(error: &OciDistributionError) -> bool {
    use OciDistributionError as E;
    match error {
        E::ServerError { code, .. } => *code >= 500 || *code == 429,
        E::RegistryError { .. } => classify(error) == Class::MayPass,
        _ => false,
    }
}

/// How long to wait after the failed attempt of that number, from 1.
pub fn pause(attempt: u32, error: &OciDistributionError) -> Duration {
    use OciDistributionError as E;
    let first = match error {
        E::ServerError { code: 429, .. } | E::RegistryError { .. } => FIRST_BUSY_PAUSE,
        _ => FIRST_PAUSE,
    };
    first * (1 << (attempt - 1))
}

/// What a failure means for whoever asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Class {
    NotFound,
    Unauthorized,
    /// What came is wrong; the next answer may be right, from the beginning.
    Corrupt,
    /// Worth another try.
    MayPass,
    Final,
}

pub fn classify(error: &OciDistributionError) -> Class {
    use OciDistributionError as E;
    match error {
        E::ImageManifestNotFoundError(_) => Class::NotFound,
        E::UnauthorizedError { .. } | E::AuthenticationFailure(_) => Class::Unauthorized,
        E::DigestError(_) => Class::Corrupt,
        E::RegistryError { envelope, .. } => match envelope.errors.first().map(|e| &e.code) {
            Some(
                OciErrorCode::ManifestUnknown
                | OciErrorCode::NameUnknown
                | OciErrorCode::NameInvalid
                | OciErrorCode::NotFound
                | OciErrorCode::BlobUnknown
                | OciErrorCode::ManifestBlobUnknown,
            ) => Class::NotFound,
            Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => Class::Unauthorized,
            Some(OciErrorCode::Toomanyrequests) => Class::MayPass,
            _ => Class::Final,
        },
        E::ServerError { code: 404, .. } => Class::NotFound,
        // No rest where some was promised: the registry's blob is shorter, or what came isn't its beginning.
        E::ServerError { code: 416, .. } => Class::Corrupt,
        E::ServerError {
            code: 401 | 403, ..
        } => Class::Unauthorized,
        E::ServerError { code, .. } if *code >= 500 || *code == 429 => Class::MayPass,
        E::RequestError(_) => Class::MayPass,
        // The stream's digest check reaches us as an I/O error with its cause inside.
        E::IoError(e) if e.get_ref().is_some_and(|inner| inner.is::<DigestError>()) => {
            Class::Corrupt
        }
        E::IoError(_) => Class::MayPass,
        _ => Class::Final,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart() {
        let server = |code| OciDistributionError::ServerError {
            code,
            url: String::new(),
            message: String::new(),
        };
        assert_eq!(classify(&server(404)), Class::NotFound);
        assert_eq!(classify(&server(403)), Class::Unauthorized);
        assert_eq!(classify(&server(416)), Class::Corrupt);
        assert_eq!(classify(&server(503)), Class::MayPass);
        let digest = DigestError::VerificationError {
            expected: "a".into(),
            actual: "b".into(),
        };
        assert_eq!(
            classify(&OciDistributionError::IoError(std::io::Error::other(
                digest
            ))),
            Class::Corrupt
        );
    }
}
