//! TLS to the database, with libpq's meanings of `sslmode`.

mod verifier;

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use self::verifier::{Roots, Verifier};
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
    let roots = match mode {
        Mode::Disable | Mode::Prefer | Mode::Require => None,
        Mode::VerifyCa | Mode::VerifyFull => Some(roots(parameters)?),
    };
    let verifier = Verifier {
        roots,
        looks_at_name: mode == Mode::VerifyFull,
        provider: Arc::clone(&provider),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| parameters.fault("sslmode", format!("cannot be had: {error}")))?
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

fn roots(parameters: &Parameters) -> Result<Roots, Fault> {
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
