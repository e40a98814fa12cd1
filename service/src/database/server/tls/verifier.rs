//! Verification of a server's certificate: by webpki, and in two cases that webpki does not support like libpq.
//!
//! The first is a self-signed certificate that is both the server's and the one that the client trusts, marked
//! as an authority's, as `openssl req -x509` makes it. The second is a certificate without a subject alternative
//! name, whose host is in its common name. Both count only for certificates of the operator's own `sslrootcert`.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_cert::{
    Certificate, TbsCertificate, Version,
    der::{Decode, Tag, Tagged, asn1::ObjectIdentifier, referenced::OwnedToRef},
    ext::pkix::{
        BasicConstraints, ExtendedKeyUsage, KeyUsage, NameConstraints, SubjectAltName,
        name::GeneralName,
    },
};

/// Attribute "common name".
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Purposes of a server's certificate.
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const ANY_PURPOSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

/// Trusted certificates.
#[derive(Debug)]
pub(super) struct Roots {
    pub store: RootCertStore,
    /// The same certificates as in the operator's file; none for those of the system.
    pub own: Option<Vec<CertificateDer<'static>>>,
}

/// Verifies servers' certificates. A server must always prove that it has the key of its certificate.
#[derive(Debug)]
pub(super) struct Verifier {
    /// None if every certificate is accepted.
    pub roots: Option<Roots>,
    /// True if the certificate must name the host.
    pub looks_at_name: bool,
    pub provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn verify(
        &self,
        roots: &Roots,
        der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let certificate = parse(der)?;
        let tbs = &certificate.tbs_certificate;
        if tbs.version != Version::V3 {
            return Err(Error::General(
                "the server's certificate is of X.509 version 1, which is not supported: sign it again with \
                 openssl x509 -req -extfile, naming a file with subjectAltName = DNS:the.host"
                    .to_owned(),
            ));
        }
        let parsed = ParsedCertificate::try_from(der)?;
        if roots.holds_self_signed(der, tbs) {
            check_self_signed(tbs, now)?;
        } else {
            let verified = verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &roots.store,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            );
            verified.map_err(|error| explained(error, tbs))?;
        }
        if !self.looks_at_name {
            return Ok(());
        }
        match verify_server_name(&parsed, host) {
            Err(_)
                if roots.own.is_some()
                    && !is_constrained(roots, intermediates)?
                    && is_common_name(tbs, host)? =>
            {
                Ok(())
            }
            verified => verified,
        }
    }
}

impl Roots {
    /// Returns true if this certificate is self-signed and the operator trusts it.
    fn holds_self_signed(&self, der: &CertificateDer<'_>, tbs: &TbsCertificate) -> bool {
        tbs.issuer == tbs.subject
            && self
                .own
                .as_ref()
                .is_some_and(|own| own.iter().any(|trusted| trusted == der))
    }
}

/// Checks the times and purposes of a certificate that is itself trusted, so that its signature proves nothing more.
fn check_self_signed(tbs: &TbsCertificate, now: UnixTime) -> Result<(), Error> {
    if now.as_secs() < tbs.validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > tbs.validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    let purposes = extension::<ExtendedKeyUsage>(tbs)?;
    let usage = extension::<KeyUsage>(tbs)?;
    let is_a_servers = purposes.is_none_or(|ExtendedKeyUsage(purposes)| {
        purposes.contains(&SERVER_AUTH) || purposes.contains(&ANY_PURPOSE)
    });
    let may_sign = usage.is_none_or(|usage| usage.digital_signature());
    if is_a_servers && may_sign {
        Ok(())
    } else {
        Err(CertificateError::InvalidPurpose.into())
    }
}

/// Returns true if an authority of the chain may sign for some names only. webpki checks that for subject alternative
/// names, and not for common names.
fn is_constrained(roots: &Roots, intermediates: &[CertificateDer<'_>]) -> Result<bool, Error> {
    if roots
        .store
        .roots
        .iter()
        .any(|root| root.name_constraints.is_some())
    {
        return Ok(true);
    }
    for intermediate in intermediates {
        let intermediate = parse(intermediate)?;
        if extension::<NameConstraints>(&intermediate.tbs_certificate)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns true if the host is the certificate's first common name, and the certificate has no subject alternative name
/// of the host's kind, which would count instead (RFC 6125, 6.4.4).
fn is_common_name(tbs: &TbsCertificate, host: &ServerName<'_>) -> Result<bool, Error> {
    let SubjectAltName(names) = extension(tbs)?.unwrap_or(SubjectAltName(Vec::new()));
    let counts = |name: &GeneralName| {
        matches!(
            (name, host),
            (GeneralName::DnsName(_), ServerName::DnsName(_))
                | (GeneralName::IpAddress(_), ServerName::IpAddress(_))
        )
    };
    if names.iter().any(counts) {
        return Ok(false);
    }
    let attributes = tbs.subject.0.iter().flat_map(|name| name.0.iter());
    let Some(common_name) = attributes
        .filter(|attribute| attribute.oid == COMMON_NAME)
        .map(|attribute| attribute.value.owned_to_ref())
        .next()
    else {
        return Ok(false);
    };
    let is_text = matches!(
        common_name.tag(),
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::TeletexString
    );
    let Some(common_name) = std::str::from_utf8(common_name.value())
        .ok()
        .filter(|name| is_text && name.is_ascii())
    else {
        return Ok(false);
    };
    Ok(match host {
        ServerName::DnsName(host) => matches_host(common_name, host.as_ref()),
        ServerName::IpAddress(address) => {
            common_name.parse().ok() == Some(std::net::IpAddr::from(*address))
        }
        _ => false,
    })
}

/// Returns true if a name of a certificate matches the host. A `*` stands for the first label only.
fn matches_host(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    match (name.strip_prefix("*."), host.split_once('.')) {
        (Some(domain), Some((label, rest))) => {
            !label.is_empty() && domain.contains('.') && domain.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

/// Adds a remedy to webpki's error.
fn explained(error: Error, tbs: &TbsCertificate) -> Error {
    let is_authority = matches!(
        extension::<BasicConstraints>(tbs),
        Ok(Some(BasicConstraints { ca: true, .. }))
    );
    let is_about_trust = matches!(
        &error,
        Error::InvalidCertificate(CertificateError::Other(_) | CertificateError::UnknownIssuer)
    );
    if is_authority && is_about_trust {
        Error::General(format!(
            "the server's certificate is an authority's (CA:TRUE): it must itself be in sslrootcert and \
             self-signed, or be made anew without that ({error})"
        ))
    } else {
        error
    }
}

fn parse(der: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::from_der(der).map_err(|_| CertificateError::BadEncoding.into())
}

/// Reads an extension; none if the certificate does not have it.
fn extension<'a, T>(tbs: &'a TbsCertificate) -> Result<Option<T>, Error>
where
    T: Decode<'a> + x509_cert::der::oid::AssociatedOid,
{
    tbs.get::<T>()
        .map(|found| found.map(|(_, extension)| extension))
        .map_err(|_| CertificateError::BadEncoding.into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            self.verify(roots, certificate, intermediates, host, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::matches_host;

    #[test]
    fn a_star_is_one_label() {
        for (name, host, matches) in [
            ("db.example", "db.example", true),
            ("DB.Example", "db.example", true),
            ("*.example.org", "db.example.org", true),
            ("*.example.org", "a.db.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.org", "example.org", false),
            ("*", "localhost", false),
            ("d*.example.org", "db.example.org", false),
            ("example.org", "db.example.org", false),
            ("", "", true),
        ] {
            assert_eq!(matches_host(name, host), matches, "{name} {host}");
        }
    }
}
