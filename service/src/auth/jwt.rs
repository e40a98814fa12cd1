//! JSON Web Tokens (RFC 7519), signed with HS256 and a shared secret, or with RS256 or ES256 and the
//! keys of a JWKS (RFC 7517).

use std::{ops::RangeInclusive, sync::Arc};

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, Validation,
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    decode, decode_header,
    errors::{Error, ErrorKind, Result as JwtResult},
    jwk::{
        AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, KeyOperations, PublicKeyUse,
    },
    signature::{self, Verifier},
};
use ring::{
    agreement::{self, ECDH_P256, EphemeralPrivateKey, agree_ephemeral},
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
        UnparsedPublicKey,
    },
};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::Value;

use super::{
    Caller, CallerId, Scopes,
    tokens::{Digest, sha256},
};

/// Tolerated difference between the issuer's clock and ours, in seconds.
const LEEWAY: u64 = 30;

/// The shortest secret, in bytes: as long as the digest (RFC 7518).
const SHORTEST_SECRET: usize = 32;

/// The lengths of an RSA modulus that are taken, in bytes: 2048 to 8192 bits, as ring counts them.
const MODULUS_BYTES: RangeInclusive<usize> = 256..=1024;

/// The RSA exponents that ring takes, if they are odd.
const EXPONENTS: RangeInclusive<u64> = 3..=(1 << 33) - 1;

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
    #[serde(default)]
    sub: Value,
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
            let operations = common.key_operations.as_ref();
            let is_for_signatures =
                matches!(common.public_key_use, None | Some(PublicKeyUse::Signature))
                    && operations.is_none_or(|all| all.contains(&KeyOperations::Verify));
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
            let key = read_key(jwk).map_err(|why| format!("key {name} {why}"))?;
            self.add(common.key_id.clone(), algorithm, key);
        }
        if self.keys.len() == before {
            return Err("holds no key for RS256 or ES256 signatures".to_owned());
        }
        self.sources.push(sha256(json));
        Ok(())
    }

    /// Returns true if this accepts the same tokens as `other`.
    pub(super) fn accepts_the_same(&self, other: &Self) -> bool {
        self.sources == other.sources
            && self.issuer == other.issuer
            && self.audience == other.audience
    }

    fn add(&mut self, id: Option<String>, algorithm: Algorithm, key: DecodingKey) {
        let mut rules = Validation::new(algorithm);
        rules.leeway = LEEWAY;
        rules.validate_nbf = true;
        // The sub is checked with its content.
        let mut required = vec!["exp"];
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
                Ok(token) => return caller(&token.claims),
                // Another key may have signed it.
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {
                    refusal = "the token's signature is wrong";
                }
                Err(error) => return Err(reason(&error)),
            }
        }
        Err(refusal)
    }
}

const FOREIGN_AUDIENCE: &str = "the token is for another audience";

/// Reads a key. One with which no token could be verified is refused here, where its owner learns why.
fn read_key(jwk: &Jwk) -> Result<DecodingKey, String> {
    let key = DecodingKey::from_jwk(jwk).map_err(|error| format!("cannot be read: {error}"))?;
    match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, e } => rsa_key(n, e),
        DecodingKeyKind::SecretOrDer(point) if is_on_p256(point) => Ok(key),
        DecodingKeyKind::SecretOrDer(_) => {
            Err("is no point on P-256: x and y must have 32 bytes each".to_owned())
        }
    }
}

/// An RSA key, without the zero bytes that some encoders put before its numbers and that ring refuses.
fn rsa_key(modulus: &[u8], exponent: &[u8]) -> Result<DecodingKey, String> {
    let (n, e) = (
        without_leading_zeros(modulus),
        without_leading_zeros(exponent),
    );
    if !MODULUS_BYTES.contains(&n.len()) {
        let bits = n.len() * 8;
        return Err(format!("has {bits} bits: RSA keys need 2048 to 8192"));
    }
    if n.last().is_none_or(|last| last % 2 == 0) {
        return Err("has an even modulus".to_owned());
    }
    let value = e.iter().try_fold(0_u64, |value, byte| {
        Some(value.checked_mul(256)? + u64::from(*byte))
    });
    if !value.is_some_and(|value| EXPONENTS.contains(&value) && value % 2 == 1) {
        let (least, most) = EXPONENTS.into_inner();
        return Err(format!(
            "has a wrong exponent: RSA keys need an odd one from {least} to {most}"
        ));
    }
    Ok(DecodingKey::from_rsa_raw_components(n, e))
}

fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// Returns true if this is an uncompressed point on the curve P-256. Ring says so only when it uses a point, and
/// an agreement with a key of our own is a use that needs no signature.
fn is_on_p256(point: &[u8]) -> bool {
    let point = agreement::UnparsedPublicKey::new(&ECDH_P256, point);
    EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())
        .is_ok_and(|own| agree_ephemeral(own, &point, |_| ()).is_ok())
}

fn caller(claims: &TokenClaims) -> Result<Caller, &'static str> {
    let subject = match claims.sub.as_str() {
        None => return Err("the token lacks a sub that is a text"),
        Some("") => return Err("the token's sub is empty"),
        Some(subject) => subject,
    };
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
    Ok(Caller {
        id: CallerId::Subject(Arc::from(subject)),
        scopes,
    })
}

fn reason(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidIssuer => "the token is of another issuer",
        ErrorKind::InvalidAudience => FOREIGN_AUDIENCE,
        ErrorKind::MissingRequiredClaim(name) => match &**name {
            "exp" => "the token lacks an exp that is a time",
            "iss" => "the token lacks an iss",
            _ => "the token lacks an aud",
        },
        ErrorKind::InvalidClaimFormat(_) => "the token's nbf is not a time",
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use serde_json::json;

    use super::*;

    const FIRST: &[u8] = b"the first secret of at least 32 bytes";
    const SECOND: &[u8] = b"the second secret of at least 32 bytes";

    /// Base64 for URLs, without padding.
    fn base64(bytes: &[u8]) -> String {
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let digits = |chunk: &[u8]| {
            let group = (0..3).fold(0, |group, n| {
                group << 8 | usize::from(chunk.get(n).copied().unwrap_or_default())
            });
            let used = chunk.len() + 1;
            let digits = [18, 12, 6, 0].map(|shift| char::from(letters[group >> shift & 63]));
            digits.into_iter().take(used).collect::<String>()
        };
        bytes.chunks(3).map(digits).collect()
    }

    fn token(secret: &[u8], claims: &Value) -> String {
        let message =
            [r#"{"alg":"HS256"}"#, &claims.to_string()].map(|part| base64(part.as_bytes()));
        let message = message.join(".");
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let signature = hmac::sign(&key, message.as_bytes());
        format!("{message}.{}", base64(signature.as_ref()))
    }

    /// Reason why `jwt` refuses a token with these claims, and `exp` and `sub` unless they are among them; null
    /// removes a claim.
    fn refusal(jwt: &Jwt, secret: &[u8], change: &Value) -> Option<&'static str> {
        let mut claims = json!({ "sub": "anna", "exp": now() + 300 });
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
            if value.is_null() {
                claims.as_object_mut().unwrap().remove(name);
            }
        }
        jwt.verify(token(secret, &claims).as_bytes()).err()
    }

    fn now() -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_secs()
    }

    #[test]
    fn the_reason_is_that_of_the_key_that_signed() {
        let mut jwt = Jwt::new(None, None);
        jwt.add_secret(FIRST).unwrap();
        jwt.add_secret(SECOND).unwrap();
        for secret in [FIRST, SECOND] {
            for (change, reason) in [
                (json!({}), None),
                (json!({ "exp": now() - 300 }), Some("the token has expired")),
                (
                    json!({ "nbf": now() + 300 }),
                    Some("the token is not valid yet"),
                ),
            ] {
                assert_eq!(refusal(&jwt, secret, &change), reason, "{change}");
            }
        }
        let stranger = b"another secret of at least 32 bytes";
        let reason = refusal(&jwt, stranger, &json!({ "exp": now() - 300 }));
        assert_eq!(reason, Some("the token's signature is wrong"));
    }

    #[test]
    fn the_reason_names_the_wrong_claim() {
        let mut jwt = Jwt::new(Some("issuer".into()), Some("honcho".into()));
        jwt.add_secret(FIRST).unwrap();
        let no_exp = "the token lacks an exp that is a time";
        let no_sub = "the token lacks a sub that is a text";
        for (name, value, reason) in [
            ("sub", json!(null), no_sub),
            ("sub", json!(17), no_sub),
            ("sub", json!(""), "the token's sub is empty"),
            ("exp", json!(null), no_exp),
            ("exp", json!("tomorrow"), no_exp),
            ("exp", json!(-1), no_exp),
            ("nbf", json!("today"), "the token's nbf is not a time"),
            ("iss", json!(null), "the token lacks an iss"),
            ("aud", json!(null), "the token lacks an aud"),
        ] {
            let mut change = json!({ "iss": "issuer", "aud": "honcho" });
            assert_eq!(refusal(&jwt, FIRST, &change), None);
            change[name] = value;
            assert_eq!(refusal(&jwt, FIRST, &change), Some(reason), "{change}");
        }
    }

    #[test]
    fn rsa_keys_that_verify_no_token_are_refused() {
        const EXPONENT: &[u8] = &[1, 0, 1];
        // An odd number of this many bits.
        let modulus = |bits: usize| {
            let mut bytes = vec![0xff; bits.div_ceil(8)];
            bytes[0] >>= bytes.len() * 8 - bits;
            bytes
        };
        let good = modulus(2048);
        let zero_before = |number: &[u8]| [&[0], number].concat();
        let mut even = good.clone();
        even[255] = 0xfe;
        for (n, e, reason) in [
            (&good, EXPONENT, None),
            (&good, &[3], None),
            (&good, &[1, 0xff, 0xff, 0xff, 0xff], None),
            (&modulus(2041), EXPONENT, None),
            (&modulus(2049), EXPONENT, None),
            (&modulus(8192), EXPONENT, None),
            (&zero_before(&good), EXPONENT, None),
            (&good, &zero_before(EXPONENT), None),
            (&zero_before(&modulus(2040)), EXPONENT, Some("2040 bits")),
            (&modulus(8193), EXPONENT, Some("8200 bits")),
            (&modulus(9000), EXPONENT, Some("9000 bits")),
            (&vec![0; 256], EXPONENT, Some("0 bits")),
            (&vec![], EXPONENT, Some("0 bits")),
            (&even, EXPONENT, Some("even modulus")),
            (&good, &[], Some("exponent")),
            (&good, &[0], Some("exponent")),
            (&good, &[1], Some("exponent")),
            (&good, &[4], Some("exponent")),
            (&good, &[2, 0, 0, 0, 1], Some("exponent")),
            (&good, &[1; 9], Some("exponent")),
        ] {
            match (rsa_key(n, e), reason) {
                (Ok(_), None) => {}
                (Err(why), Some(reason)) => assert!(why.contains(reason), "{why}"),
                (outcome, _) => panic!("{outcome:?}: {reason:?}"),
            }
        }
    }

    /// Ring takes no number with a zero byte before it.
    #[test]
    fn zero_bytes_before_an_rsa_key_are_left_out() {
        let modulus = [0xff; 256];
        let zeros = [&[0, 0], &modulus[..]].concat();
        let key = rsa_key(&zeros, &[0, 1, 0, 1]).unwrap();
        let DecodingKeyKind::RsaModulusExponent { n, e } = key.kind() else {
            panic!("{key:?}");
        };
        assert_eq!((&n[..], &e[..]), (&modulus[..], &[1, 0, 1][..]));
    }

    fn point() -> Vec<u8> {
        let (random, curve) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let document = EcdsaKeyPair::generate_pkcs8(curve, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(curve, document.as_ref(), &random).unwrap();
        pair.public_key().as_ref().to_vec()
    }

    #[test]
    fn jwks_takes_points_on_the_curve_only() {
        let point = point();
        let (x, y) = (&point[1..33], &point[33..]);
        let mut beside = y.to_vec();
        beside[31] ^= 1;
        for (x, y, is_good) in [
            (x, y, true),
            (&x[1..], y, false),
            (x, &y[..31], false),
            (x, &beside, false),
            (y, x, false),
            (&[], &[], false),
            (&[0; 32], &[0; 32], false),
        ] {
            let key =
                json!({ "kty": "EC", "crv": "P-256", "kid": "a", "x": base64(x), "y": base64(y) });
            let taken =
                Jwt::new(None, None).add_jwks(json!({ "keys": [key] }).to_string().as_bytes());
            match taken {
                Ok(()) => assert!(is_good, "{key}"),
                Err(why) => assert!(!is_good && why.contains("key a is no point"), "{why}"),
            }
        }
    }

    #[test]
    fn jwks_leaves_alone_keys_that_are_not_for_signatures() {
        let point = point();
        let (x, y) = (base64(&point[1..33]), base64(&point[33..]));
        for (purpose, is_taken) in [
            (json!({}), true),
            (json!({ "use": "sig" }), true),
            (json!({ "use": "enc" }), false),
            (json!({ "key_ops": ["verify"] }), true),
            (json!({ "key_ops": ["sign", "verify"] }), true),
            (json!({ "key_ops": ["encrypt"] }), false),
            (json!({ "key_ops": [] }), false),
            (json!({ "key_ops": ["encrypt"], "use": "sig" }), false),
            (json!({ "key_ops": ["verify"], "use": "enc" }), false),
        ] {
            let mut key = json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y });
            let members = purpose.as_object().unwrap().clone();
            key.as_object_mut().unwrap().extend(members);
            let set = json!({ "keys": [key] }).to_string();
            match Jwt::new(None, None).add_jwks(set.as_bytes()) {
                Ok(()) => assert!(is_taken, "{purpose}"),
                Err(why) => assert!(!is_taken && why.contains("holds no key"), "{why}"),
            }
        }
    }
}
