//! TLS to the database, with libpq's meaning of `sslmode`.

mod verifier;

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use self::verifier::{Roots, Verifier};
use super::conninfo::{ConninfoError, Parameters};

/// libpq's `sslmode`, but for `allow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SslModeSetting {
    /// No TLS.
    Disable,
    /// TLS if the server supports it, without verification.
    Prefer,
    /// TLS without verification.
    Require,
    /// TLS with a server whose certificate a trusted authority has signed.
    VerifyCa,
    /// The same, and the certificate must name the host.
    VerifyFull,
}

/// Reads `sslmode`, `sslrootcert`, `sslcert` and `sslkey`, and the files that they name.
///
/// # Errors
/// A parameter or a file is wrong.
pub(crate) fn configure(
    parameters: &Parameters,
) -> Result<(SslModeSetting, ClientConfig), ConninfoError> {
    let mode = mode(parameters)?;
    let provider = Arc::new(ring::default_provider());
    let roots = match mode {
        SslModeSetting::Disable | SslModeSetting::Prefer | SslModeSetting::Require => None,
        SslModeSetting::VerifyCa | SslModeSetting::VerifyFull => Some(roots(parameters)?),
    };
    let verifier = Verifier {
        roots,
        looks_at_name: mode == SslModeSetting::VerifyFull,
        provider: Arc::clone(&provider),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| parameters.fault("sslmode", format!("cannot be used: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
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

/// Value of `sslrootcert` that stands for the system's certificates.
const SYSTEM: &str = "system";

fn mode(parameters: &Parameters) -> Result<SslModeSetting, ConninfoError> {
    let allowed = "disable, prefer, require, verify-ca or verify-full";
    let mode = parameters.parsed("sslmode", allowed, |text| {
        Some(match text {
            "disable" => SslModeSetting::Disable,
            "prefer" => SslModeSetting::Prefer,
            "require" => SslModeSetting::Require,
            "verify-ca" => SslModeSetting::VerifyCa,
            "verify-full" => SslModeSetting::VerifyFull,
            _ => return None,
        })
    })?;
    match (mode, parameters.get("sslrootcert")) {
        (None, Some(SYSTEM)) => Ok(SslModeSetting::VerifyFull),
        // These authorities sign for everyone, so the name in the certificate must be verified.
        (Some(mode), Some(SYSTEM)) if mode != SslModeSetting::VerifyFull => {
            Err(parameters.fault("sslmode", "must be verify-full where sslrootcert is system"))
        }
        // Like libpq: a root certificate asks for verification.
        (Some(SslModeSetting::Require), Some(_)) => Ok(SslModeSetting::VerifyCa),
        (Some(SslModeSetting::VerifyCa | SslModeSetting::VerifyFull), None) => Err(parameters
            .fault(
                "sslmode",
                "needs sslrootcert beside it: a file of certificates, or system",
            )),
        (mode, _) => Ok(mode.unwrap_or(SslModeSetting::Prefer)),
    }
}

fn roots(parameters: &Parameters) -> Result<Roots, ConninfoError> {
    let fault = |why: String| parameters.fault("sslrootcert", why);
    let mut store = RootCertStore::empty();
    match parameters.get("sslrootcert").unwrap_or(SYSTEM) {
        SYSTEM => {
            let found = rustls_native_certs::load_native_certs();
            if store.add_parsable_certificates(found.certs).0 == 0 {
                return Err(fault("finds no certificates on this system".to_owned()));
            }
            Ok(Roots { store, own: None })
        }
        file => {
            let own = certificates(parameters, "sslrootcert", file)?;
            for certificate in &own {
                store
                    .add(certificate.clone())
                    .map_err(|error| fault(format!("has a certificate of no use: {error}")))?;
            }
            Ok(Roots {
                store,
                own: Some(own),
            })
        }
    }
}

fn certificates(
    parameters: &Parameters,
    name: &str,
    file: &str,
) -> Result<Vec<CertificateDer<'static>>, ConninfoError> {
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
