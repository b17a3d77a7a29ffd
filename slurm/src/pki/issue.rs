//! Issuing what was planned.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose as Usage,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use super::{Authority, Wanted};

/// A file of the PKI folder: its name and its PEM text.
pub type PemFile = (String, String);

/// When certificates of a job that ends then (seconds since 1970) are no longer valid: a day later,
/// for clocks that differ; a year and a day from now for one that doesn't end.
pub fn last_day(ends: Option<i64>) -> OffsetDateTime {
    let end = ends.and_then(|ends| OffsetDateTime::from_unix_timestamp(ends).ok());
    match end {
        Some(end) => end + Duration::DAY,
        None => OffsetDateTime::now_utc() + Duration::days(366),
    }
}

/// Issues everything: authorities, certificates, and the key that signs service-account tokens.
pub fn issue(cluster: &str, wanted: &[Wanted], until: OffsetDateTime) -> Result<Vec<PemFile>> {
    let mut files = Vec::new();
    let mut authorities = Vec::new();
    for authority in Authority::ALL {
        let issuer = new_authority(&format!("hpk-{cluster} {}", authority.name()), until)
            .with_context(|| format!("making the authority {}", authority.name()))?;
        files.push((format!("{}.crt", authority.name()), issuer.pem()));
        files.push((
            format!("{}.key", authority.name()),
            issuer.key().serialize_pem(),
        ));
        authorities.push((authority, issuer));
    }
    for one in wanted {
        let issuer = authorities
            .iter()
            .find(|(authority, _)| *authority == one.authority)
            .map(|(_, issuer)| issuer)
            .context("an authority is missing")?;
        let (certificate, key) =
            certificate(one, issuer, until).with_context(|| format!("issuing {}", one.name))?;
        files.push((format!("{}.crt", one.name), certificate));
        files.push((format!("{}.key", one.name), key));
    }
    let signer = KeyPair::generate().context("making the service-account key")?;
    files.push(("sa.key".into(), signer.serialize_pem()));
    files.push(("sa.pub".into(), signer.public_key_pem()));
    Ok(files)
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn new_authority(name: &str, until: OffsetDateTime) -> Result<Issuer, rcgen::Error> {
    let mut params = valid(until);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn certificate(
    wanted: &Wanted,
    issuer: &Issuer,
    until: OffsetDateTime,
) -> Result<(String, String), rcgen::Error> {
    let mut params = valid(until);
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(organization) = wanted.organization {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
    }
    params
        .distinguished_name
        .push(DnType::CommonName, wanted.common_name.as_str());
    for name in &wanted.names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    if wanted.server {
        params.extended_key_usages.push(Usage::ServerAuth);
    }
    if wanted.client {
        params.extended_key_usages.push(Usage::ClientAuth);
    }
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// From an hour ago, for hosts whose clocks differ.
fn valid(until: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() - Duration::HOUR;
    params.not_after = until;
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::tests::planned;

    #[test]
    fn each_certificate_comes_with_its_key() {
        let files = issue("7", &planned(), last_day(None)).unwrap();
        for (name, text) in &files {
            if let Some(stem) = name.strip_suffix(".crt") {
                assert!(text.starts_with("-----BEGIN CERTIFICATE"), "{name}");
                let key = format!("{stem}.key");
                assert!(
                    files
                        .iter()
                        .any(|(name, text)| *name == key
                            && text.starts_with("-----BEGIN PRIVATE KEY")),
                    "{key}"
                );
            }
        }
    }

    #[test]
    fn every_certificate_ends_a_day_after_the_job() {
        let ends = OffsetDateTime::now_utc().unix_timestamp() + 3600;
        let until = last_day(Some(ends));
        assert_eq!(until.unix_timestamp(), ends + 86_400);
        let days = (last_day(None) - OffsetDateTime::now_utc()).whole_days();
        assert!((365..=366).contains(&days), "{days}");
        for (name, text) in issue("7", &planned(), until).unwrap() {
            if name.ends_with(".crt") {
                let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap();
                let certificate = pem.parse_x509().unwrap();
                let end = certificate.validity().not_after.timestamp();
                assert_eq!(end, ends + 86_400, "{name}");
            }
        }
    }
}
