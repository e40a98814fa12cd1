//! JSON Web Tokens (RFC 7519), signed with HS256 and a shared secret, or with RS256 or ES256 and the
//! keys of a JWKS (RFC 7517).

use std::sync::Arc;

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, Validation,
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    decode, decode_header,
    errors::{Error, ErrorKind, Result as JwtResult},
    jwk::{AlgorithmParameters, EllipticCurve, JwkSet, KeyAlgorithm, PublicKeyUse},
    signature::{self, Verifier},
};
use ring::{
    hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
        UnparsedPublicKey,
    },
};
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::{
    Caller, CallerId, Scopes,
    tokens::{Digest, sha256},
};

/// Tolerated difference between the issuer's clock and ours, in seconds.
const LEEWAY: u64 = 30;

/// The shortest secret, in bytes: as long as the digest (RFC 7518).
const SHORTEST_SECRET: usize = 32;

/// The shortest RSA modulus that is taken, in bytes.
const SHORTEST_MODULUS: usize = 256;

/// The JSON Web Tokens that are accepted.
#[derive(Debug)]
pub struct Jwt {
    keys: Vec<VerificationKey>,
    /// Digests of the texts that the keys were read from.
    sources: Vec<Digest>,
    issuer: Option<String>,
    audience: Option<String>,
}

/// A key, and the rules for tokens signed with it.
#[derive(Debug)]
struct VerificationKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    rules: Validation,
}

/// The parts of a token that are read here.
#[derive(Deserialize)]
struct TokenClaims {
    sub: String,
    #[serde(default)]
    scope: Option<Granted>,
    #[serde(default)]
    scp: Option<Granted>,
    /// True if the token has an `aud`, of any form.
    #[serde(default, rename = "aud", deserialize_with = "is_there")]
    has_audience: bool,
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// Scopes as RFC 8693 writes them, in one text, or as a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Granted {
    Joined(String),
    List(Vec<String>),
}

impl Jwt {
    /// Accepts tokens of `issuer` and for `audience`, where they are given. Without an audience, tokens
    /// that have an `aud` are refused. Knows no key yet.
    pub fn new(issuer: Option<String>, audience: Option<String>) -> Self {
        // An error means that an earlier call has installed it.
        let _ = RING.install_default();
        Self {
            keys: Vec::new(),
            sources: Vec::new(),
            issuer,
            audience,
        }
    }

    /// Accepts tokens signed with HS256 and this secret.
    ///
    /// # Errors
    /// The secret is too short.
    pub fn add_secret(&mut self, secret: &[u8]) -> Result<(), String> {
        if secret.len() < SHORTEST_SECRET {
            return Err(format!("must have at least {SHORTEST_SECRET} bytes"));
        }
        self.add(None, Algorithm::HS256, DecodingKey::from_secret(secret));
        self.sources.push(sha256(secret));
        Ok(())
    }

    /// Accepts tokens signed with the keys of a JWKS that are for RS256 or ES256. Others are left
    /// alone: providers publish keys for many purposes.
    ///
    /// # Errors
    /// The JWKS has no usable key, or one that is unsafe.
    pub fn add_jwks(&mut self, json: &[u8]) -> Result<(), String> {
        let set: JwkSet =
            serde_json::from_slice(json).map_err(|error| format!("is no JWKS: {error}"))?;
        let before = self.keys.len();
        for jwk in &set.keys {
            let common = &jwk.common;
            let is_for_signatures =
                matches!(common.public_key_use, None | Some(PublicKeyUse::Signature));
            let algorithm = match (&jwk.algorithm, common.key_algorithm) {
                (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
                (AlgorithmParameters::EllipticCurve(key), None | Some(KeyAlgorithm::ES256))
                    if key.curve == EllipticCurve::P256 =>
                {
                    Algorithm::ES256
                }
                _ => continue,
            };
            if !is_for_signatures {
                continue;
            }
            let name = common.key_id.as_deref().unwrap_or("without a kid");
            let key = DecodingKey::from_jwk(jwk)
                .map_err(|error| format!("key {name} cannot be read: {error}"))?;
            if let DecodingKeyKind::RsaModulusExponent { n, .. } = key.kind()
                && n.len() < SHORTEST_MODULUS
            {
                return Err(format!("key {name} is too short: RSA begins at 2048 bits"));
            }
            self.add(common.key_id.clone(), algorithm, key);
        }
        if self.keys.len() == before {
            return Err("holds no key for RS256 or ES256 signatures".to_owned());
        }
        self.sources.push(sha256(json));
        Ok(())
    }

    /// Returns true if this accepts the same tokens as `other`.
    pub(super) fn has_same_keys(&self, other: &Self) -> bool {
        self.sources == other.sources
            && self.issuer == other.issuer
            && self.audience == other.audience
    }

    fn add(&mut self, id: Option<String>, algorithm: Algorithm, key: DecodingKey) {
        let mut rules = Validation::new(algorithm);
        rules.leeway = LEEWAY;
        rules.validate_nbf = true;
        let mut required = vec!["exp", "sub"];
        if let Some(issuer) = &self.issuer {
            rules.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &self.audience {
            rules.set_audience(&[audience]);
            required.push("aud");
        }
        rules.set_required_spec_claims(&required);
        self.keys.push(VerificationKey {
            id,
            algorithm,
            key,
            rules,
        });
    }

    /// Verifies a token and returns its caller.
    ///
    /// # Errors
    /// The reason why the token is refused.
    pub(super) fn verify(&self, token: &[u8]) -> Result<Caller, &'static str> {
        let header = decode_header(token).map_err(|_| "the token is not known")?;
        // It names extensions that must be understood (RFC 7515, 4.1.11); none is.
        if header.crit.is_some() {
            return Err("the token has a crit, which names what is not understood here");
        }
        let mut refusal = "no key is known for the token's alg and kid";
        for key in &self.keys {
            let fits = key.algorithm == header.alg
                && (header.kid.is_none() || key.id.is_none() || header.kid == key.id);
            if !fits {
                continue;
            }
            match decode::<TokenClaims>(token, &key.key, &key.rules) {
                Ok(token) if token.claims.has_audience && self.audience.is_none() => {
                    return Err(FOREIGN_AUDIENCE);
                }
                Ok(token) if token.claims.sub.is_empty() => return Err("the token's sub is empty"),
                Ok(token) => return Ok(caller(&token.claims)),
                Err(error) => refusal = reason(&error),
            }
        }
        Err(refusal)
    }
}

const FOREIGN_AUDIENCE: &str = "the token is for another audience";

fn caller(claims: &TokenClaims) -> Caller {
    let mut scopes = Scopes::default();
    // The token may have scopes of other services.
    let mut grant = |name: &str| {
        scopes.add(name);
    };
    for granted in [&claims.scope, &claims.scp].into_iter().flatten() {
        match granted {
            Granted::Joined(names) => names.split(' ').for_each(&mut grant),
            Granted::List(names) => names.iter().for_each(|name| grant(name)),
        }
    }
    Caller {
        id: CallerId::Subject(Arc::from(&*claims.sub)),
        scopes,
    }
}

fn reason(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidSignature => "the token's signature is wrong",
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidIssuer => "the token is of another issuer",
        ErrorKind::InvalidAudience => FOREIGN_AUDIENCE,
        ErrorKind::MissingRequiredClaim(_) => "the token lacks one of exp, sub, iss, aud",
        _ => "the token cannot be read",
    }
}

/// Verifies signatures with ring, which TLS to the database uses already. Nothing here signs.
static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> JwtResult<Box<dyn JwtVerifier>> {
    Ok(match (algorithm, key.family(), key.kind()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac, DecodingKeyKind::SecretOrDer(secret)) => {
            Box::new(Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret)))
        }
        (Algorithm::RS256, AlgorithmFamily::Rsa, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            Box::new(Rs256(RsaPublicKeyComponents {
                n: n.clone(),
                e: e.clone(),
            }))
        }
        (Algorithm::ES256, AlgorithmFamily::Ec, DecodingKeyKind::SecretOrDer(point)) => {
            Box::new(Es256(UnparsedPublicKey::new(
                &ECDSA_P256_SHA256_FIXED,
                point.clone(),
            )))
        }
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    })
}

struct Hs256(hmac::Key);
struct Rs256(RsaPublicKeyComponents<Vec<u8>>);
struct Es256(UnparsedPublicKey<Vec<u8>>);

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        hmac::verify(&self.0, message, signature).map_err(|_| signature::Error::new())
    }
}

impl Verifier<Vec<u8>> for Rs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        self.0
            .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            .map_err(|_| signature::Error::new())
    }
}

impl Verifier<Vec<u8>> for Es256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        self.0
            .verify(message, signature)
            .map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Rs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::RS256
    }
}

impl JwtVerifier for Es256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}
