//! TLS to the database, with libpq's meanings of `sslmode`.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

use crate::libpq::{Fault, Parameters};

/// libpq's `sslmode`, but for `allow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// No TLS.
    Disable,
    /// TLS where the server has it, with whoever it is.
    Prefer,
    /// TLS with whoever the server is.
    Require,
    /// TLS with a server whose certificate one of ours has signed.
    VerifyCa,
    /// The same, and the certificate is made out to the host that we asked for.
    VerifyFull,
}

/// Reads `sslmode`, `sslrootcert`, `sslcert` and `sslkey`, and the files that they name.
pub(crate) fn configure(parameters: &Parameters) -> Result<(Mode, ClientConfig), Fault> {
    let mode = mode(parameters)?;
    let provider = Arc::new(ring::default_provider());
    let nameless = |roots| {
        Arc::new(Nameless {
            roots,
            provider: Arc::clone(&provider),
        })
    };
    let verifier: Arc<dyn ServerCertVerifier> = match mode {
        Mode::Disable | Mode::Prefer | Mode::Require => nameless(None),
        Mode::VerifyCa => nameless(Some(roots(parameters)?)),
        Mode::VerifyFull => {
            let roots = Arc::new(roots(parameters)?);
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .build()
                .map_err(|error| {
                    parameters.fault("sslrootcert", format!("is of no use: {error}"))
                })?
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| parameters.fault("sslmode", format!("cannot be had: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match (parameters.get("sslcert"), parameters.get("sslkey")) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(parameters, "sslcert", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| parameters.fault("sslkey", format!("cannot be read: {error}")))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| parameters.fault("sslkey", format!("is of no use: {error}")))?
        }
        (None, None) => builder.with_no_client_auth(),
        (Some(_), None) => return Err(parameters.fault("sslcert", "needs sslkey beside it")),
        (None, Some(_)) => return Err(parameters.fault("sslkey", "needs sslcert beside it")),
    };
    Ok((mode, config))
}

/// The roots of the system, in the place of a file's name.
const SYSTEM: &str = "system";

fn mode(parameters: &Parameters) -> Result<Mode, Fault> {
    let allowed = "disable, prefer, require, verify-ca or verify-full";
    let mode = parameters.parsed("sslmode", allowed, |text| {
        Some(match text {
            "disable" => Mode::Disable,
            "prefer" => Mode::Prefer,
            "require" => Mode::Require,
            "verify-ca" => Mode::VerifyCa,
            "verify-full" => Mode::VerifyFull,
            _ => return None,
        })
    })?;
    match (mode, parameters.get("sslrootcert")) {
        (None, Some(SYSTEM)) => Ok(Mode::VerifyFull),
        // Anybody can get a certificate from these, so it is the name in it that counts.
        (Some(mode), Some(SYSTEM)) if mode != Mode::VerifyFull => {
            Err(parameters.fault("sslmode", "must be verify-full where sslrootcert is system"))
        }
        // As libpq has it, for those who named a root and forgot to say so.
        (Some(Mode::Require), Some(_)) => Ok(Mode::VerifyCa),
        (Some(Mode::VerifyCa | Mode::VerifyFull), None) => Err(parameters.fault(
            "sslmode",
            "needs sslrootcert beside it: a file of certificates, or system",
        )),
        (mode, _) => Ok(mode.unwrap_or(Mode::Prefer)),
    }
}

fn roots(parameters: &Parameters) -> Result<RootCertStore, Fault> {
    let fault = |why: String| parameters.fault("sslrootcert", why);
    let mut roots = RootCertStore::empty();
    match parameters.get("sslrootcert").unwrap_or(SYSTEM) {
        SYSTEM => {
            let found = rustls_native_certs::load_native_certs();
            if roots.add_parsable_certificates(found.certs).0 == 0 {
                return Err(fault("finds no certificates on this system".to_owned()));
            }
        }
        file => {
            for certificate in certificates(parameters, "sslrootcert", file)? {
                roots
                    .add(certificate)
                    .map_err(|error| fault(format!("has a certificate of no use: {error}")))?;
            }
        }
    }
    Ok(roots)
}

fn certificates(
    parameters: &Parameters,
    name: &str,
    file: &str,
) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(Path::new(file))
        .and_then(|certificates| certificates.collect());
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(parameters.fault(name, "names a file without a certificate in PEM format"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(parameters.fault(name, format!("cannot be read: {error}"))),
    }
}

/// Does not look at the name in a certificate, and where there are no roots not at who signed it; that
/// the server has the certificate's key is seen to.
#[derive(Debug)]
struct Nameless {
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Nameless {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(certificate)?,
                roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
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
