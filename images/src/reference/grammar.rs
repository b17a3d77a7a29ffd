//! The grammar of names, `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`, as oci-spec has it of distribution's package `reference`
//! (github.com/distribution/reference, regexp.go and normalize.go): without its IPv6 addresses.
//!
//! oci-spec has it as one regular expression, which takes a static program 90 ms of a processor to compile: as long as the
//! start of a container, and each hpktainer would pay it twice. That the two agree is tested below. Other than there, a tag
//! has ASCII letters alone, and what is taken for a registry must be a host's name.

use oci_client::{ParseError, Reference};

const HUB: &str = "docker.io";
/// What Docker's hub was called once.
const OLD_HUB: &str = "index.docker.io";
/// Longest repository.
const LONGEST: usize = 255;
const LONGEST_TAG: usize = 128;

/// Of a name without a registry the hub's, and of one without tag and digest `latest`.
pub fn parse(text: &str) -> Result<Reference, ParseError> {
    if text.is_empty() {
        return Err(ParseError::NameEmpty);
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(check_digest(digest)?)),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        // Behind a colon that is a registry's comes a port.
        Some((name, tag)) if !tag.contains('/') => (name, Some(check_tag(tag)?)),
        _ => (rest, None),
    };
    let (registry, repository) = split_registry(name)?;
    check_repository(&repository)?;
    let tag = tag.map(str::to_owned);
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag, digest)
        }
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
        (tag, None) => {
            let tag = tag.unwrap_or_else(|| "latest".to_owned());
            Reference::with_tag(registry, repository, tag)
        }
    })
}

/// What stands before the first slash is a registry if it looks like a host's name.
fn split_registry(name: &str) -> Result<(String, String), ParseError> {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (HUB, name),
    };
    if !is_host(registry) {
        return Err(ParseError::ReferenceInvalidFormat);
    }
    if registry != HUB && registry != OLD_HUB {
        return Ok((registry.to_owned(), repository.to_owned()));
    }
    let repository = match repository.contains('/') {
        true => repository.to_owned(),
        false => format!("library/{repository}"),
    };
    Ok((HUB.to_owned(), repository))
}

/// Labels with dots between, and perhaps a port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn check_repository(text: &str) -> Result<(), ParseError> {
    if text.len() > LONGEST {
        return Err(ParseError::NameTooLong);
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ParseError::NameContainsUppercase);
    }
    match text.split('/').all(is_component) {
        true => Ok(()),
        false => Err(ParseError::ReferenceInvalidFormat),
    }
}

/// Small letters and digits; between them one dot, one or two underscores, or hyphens.
fn is_component(text: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |text: &str| {
        matches!(text, "." | "_" | "__") || text.bytes().all(|separator| separator == b'-')
    };
    text.starts_with(is_letter)
        && text.ends_with(is_letter)
        && text.split(is_letter).all(is_separator)
}

fn check_tag(text: &str) -> Result<&str, ParseError> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = text.bytes();
    let is_tag = bytes.next().is_some_and(is_word)
        && bytes.all(|b| is_word(b) || b == b'.' || b == b'-')
        && text.len() <= LONGEST_TAG;
    match is_tag {
        true => Ok(text),
        false => Err(ParseError::TagInvalidFormat),
    }
}

fn check_digest(text: &str) -> Result<String, ParseError> {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return Err(ParseError::DigestInvalidFormat);
    };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(ParseError::DigestUnsupported),
    };
    if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ParseError::DigestInvalidFormat);
    }
    match hex.len() == length {
        true => Ok(text.to_owned()),
        false => Err(ParseError::DigestInvalidLength),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What oci-spec makes of it, less what only it takes.
    fn by_oci_spec(text: &str) -> Option<Reference> {
        let reference: Reference = text.parse().ok()?;
        let is_ascii = reference.tag().is_none_or(str::is_ascii);
        let is_lower = !reference.repository().contains(char::is_uppercase);
        (is_ascii && is_lower && is_host(reference.registry())).then_some(reference)
    }

    #[track_caller]
    fn agree(text: &str) {
        assert_eq!(parse(text).ok(), by_oci_spec(text), "{text:?}");
    }

    /// Strings that are nearly names.
    fn nearly() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            proptest::sample::select(vec![
                "a",
                "b1",
                "A",
                "localhost",
                "docker.io",
                "index.docker.io",
                "library",
                "latest",
                "5000",
                "/",
                "/",
                ":",
                ":",
                "@",
                "@sha256:",
                "@sha512:",
                "@md5:",
                ".",
                "_",
                "__",
                "-",
                "--",
                " ",
                "ü",
                "\n",
                "",
            ])
            .prop_map(str::to_owned),
            proptest::sample::select(vec![31_usize, 32, 63, 64, 65, 127, 128, 129, 255, 256])
                .prop_map(|length| "a".repeat(length)),
        ];
        proptest::collection::vec(piece, 0..9).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn what_is_nearly_a_name_is_taken_as_by_oci_spec(text in nearly()) {
            agree(&text);
        }
    }

    #[test]
    fn names_are_taken_as_by_oci_spec() {
        let digest = format!("sha256:{}", "0f".repeat(32));
        for name in [
            "busybox",
            "busybox:1.36",
            "me/app",
            "a/b/c:x_1.-",
            "localhost/a",
            "localhost:5000/a",
            "localhost:5000",
            "r.example.org:443/a/b:c",
            "r.example.org/a--b__c.d/e_f",
            "Foo.bar/x",
            "10.0.0.1:5000/x:y",
            "a:/b",
            "a:b:c",
            "x/-a",
            "x/a-",
            "x/a..b",
            "x/a___b",
            "x/a_-b",
            "a./b",
            "-a.b/c",
            "a.b-/c",
            "a.b:/c",
            "a.b:x/c",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a@",
            ":a",
            "index.docker.io/a",
            "docker.io/a/b",
            "docker.io/",
            "a_b.c/d",
        ] {
            agree(name);
            agree(&format!("{name}@{digest}"));
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        let error = |text: &str| parse(text).unwrap_err();
        assert_eq!(error(""), ParseError::NameEmpty);
        assert_eq!(error("UPPER/case"), ParseError::NameContainsUppercase);
        assert_eq!(error("a:ü"), ParseError::TagInvalidFormat);
        assert_eq!(error("a@sha256:12"), ParseError::DigestInvalidLength);
        assert_eq!(error("a@md5:12"), ParseError::DigestUnsupported);
        assert_eq!(
            error(&format!("x/{}", "a".repeat(254))),
            ParseError::NameTooLong
        );
    }
}
