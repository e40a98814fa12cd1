//! JSON Web Tokens: made here by hand, so that nothing vouches for itself.

use std::{
    fs,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, ensure};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use reqwest::Method;
use ring::{
    hmac,
    rand::SystemRandom,
    rsa,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256},
};
use serde_json::{Value, json};

use crate::fixtures::api::{Answer, Api, answer};

const SECRET: &str = "a secret of at least thirty-two bytes";

/// Something that signs.
pub enum Signer {
    Hs256(Vec<u8>),
    Rs256(Box<rsa::KeyPair>),
    Es256(Box<EcdsaKeyPair>),
}

impl Signer {
    pub fn es256() -> Result<Self> {
        let random = SystemRandom::new();
        let broken = |error: &dyn std::fmt::Display| anyhow!("no key: {error}");
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .map_err(|error| broken(&error))?;
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random)
                .map_err(|error| broken(&error))?;
        Ok(Self::Es256(Box::new(pair)))
    }

    /// A token of a reader's, without issuer and audience.
    pub fn reader(&self) -> Result<String> {
        self.token(
            None,
            &claims(&json!({ "iss": null, "aud": null, "scope": "read" }))?,
        )
    }

    /// The public key as the only one of a JWKS.
    pub fn jwks(&self, id: &str) -> Value {
        json!({ "keys": [self.jwk(id)] })
    }

    /// A key of so many bits, made by OpenSSL: ring makes none.
    fn rs256(bits: u32) -> Result<Self> {
        let output = Command::new("openssl")
            .args([
                "genpkey",
                "-algorithm",
                "RSA",
                "-outform",
                "DER",
                "-pkeyopt",
            ])
            .arg(format!("rsa_keygen_bits:{bits}"))
            .stderr(Stdio::null())
            .output()
            .context("openssl does not run")?;
        ensure!(output.status.success(), "openssl made no key");
        // OpenSSL 3.0 writes PKCS #1 here, others PKCS #8.
        let pair = rsa::KeyPair::from_pkcs8(&output.stdout)
            .or_else(|_| rsa::KeyPair::from_der(&output.stdout))
            .map_err(|error| anyhow!("{error}"))?;
        Ok(Self::Rs256(Box::new(pair)))
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Hs256(_) => "HS256",
            Self::Rs256(_) => "RS256",
            Self::Es256(_) => "ES256",
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        Ok(match self {
            Self::Hs256(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::sign(&key, message).as_ref().to_vec()
            }
            Self::Rs256(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| anyhow!("no signature"))?;
                signature
            }
            Self::Es256(pair) => pair
                .sign(&random, message)
                .map_err(|_| anyhow!("no signature"))?
                .as_ref()
                .to_vec(),
        })
    }

    /// The public key as a JWK.
    fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Hs256(secret) => json!({ "kty": "oct", "kid": id, "k": BASE64.encode(secret) }),
            Self::Rs256(pair) => {
                let key = rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({
                    "kty": "RSA", "kid": id, "use": "sig", "alg": "RS256",
                    "n": BASE64.encode(key.n), "e": BASE64.encode(key.e),
                })
            }
            Self::Es256(pair) => {
                let point = pair.public_key().as_ref();
                json!({
                    "kty": "EC", "crv": "P-256", "kid": id, "use": "sig", "alg": "ES256",
                    "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..]),
                })
            }
        }
    }

    fn token(&self, id: Option<&str>, claims: &Value) -> Result<String> {
        self.token_with(
            &json!({ "alg": self.algorithm(), "kid": id, "typ": "JWT" }),
            claims,
        )
    }

    fn token_with(&self, header: &Value, claims: &Value) -> Result<String> {
        let message = format!(
            "{}.{}",
            BASE64.encode(header.to_string()),
            BASE64.encode(claims.to_string())
        );
        let signature = BASE64.encode(self.sign(message.as_bytes())?);
        Ok(format!("{message}.{signature}"))
    }
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// The claims of a good token, changed by `change`: null takes one out.
fn claims(change: &Value) -> Result<Value> {
    let now = now()?;
    let mut claims = json!({
        "sub": "anna", "scope": "claim read", "exp": now + 300,
        "iss": "https://issuer.example", "aud": "honcho",
    });
    for (name, value) in change.as_object().context("no object")? {
        claims[name] = value.clone();
        if value.is_null() {
            claims.as_object_mut().context("no object")?.remove(name);
        }
    }
    Ok(claims)
}

async fn claim(api: &Api, user: &str, token: &str) -> Result<Answer> {
    answer(
        api.claim_request(user, "PROMO")
            .header("authorization", format!("Bearer {token}")),
    )
    .await
}

#[tokio::test]
async fn a_token_claims_for_its_subject_alone() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let environment = [
        ("JWT_SECRET", SECRET),
        ("API_TOKENS", "0123456789abcdef:claim"),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let signer = Signer::Hs256(SECRET.into());
    let token = signer.token(None, &claims(&json!({ "aud": null }))?)?;
    assert_eq!(claim(&api, "anna", &token).await?.status, 200);
    assert_eq!(
        claim(&api, "anna", &token).await?.shown(),
        "409 already_claimed"
    );
    for other in ["bert", "Anna", "anna ", "ann"] {
        let refused = claim(&api, other, &token).await?;
        assert_eq!(refused.shown(), "403 forbidden", "{other}");
    }
    // Not even whether there is such a coupon.
    let foreign = api
        .claim_request("bert", "none")
        .header("authorization", format!("Bearer {token}"));
    assert_eq!(answer(foreign).await?.shown(), "403 forbidden");
    // A token of ours speaks for everybody.
    assert_eq!(claim(&api, "bert", "0123456789abcdef").await?.status, 200);

    let show = |token: &str| {
        answer(
            api.show_request("PROMO")
                .header("authorization", format!("Bearer {token}")),
        )
    };
    assert_eq!(show(&token).await?.status, 200);
    for (change, status) in [
        (json!({ "scope": "claim" }), 403),
        (json!({ "scope": null }), 403),
        (json!({ "scope": "readonly xread read: READ" }), 403),
        (json!({ "scope": ["claim", "read"] }), 200),
        (json!({ "scope": null, "scp": "read" }), 200),
        // Some providers give both, or one of them as null.
        (json!({ "scope": "claim", "scp": ["read"] }), 200),
        (json!({ "scope": "read", "scp": ["claim"] }), 200),
        (json!({ "scope": "claim", "scp": [] }), 403),
        (json!({ "scope": "openid read email" }), 200),
    ] {
        let token = signer.token(None, &claims(&json!({ "aud": null }))?)?;
        assert_eq!(show(&token).await?.status, 200);
        let mut changed = claims(&change)?;
        changed.as_object_mut().context("no object")?.remove("aud");
        let token = signer.token(None, &changed)?;
        assert_eq!(show(&token).await?.status, status, "{change}");
    }
    let created = answer(
        api.request(Method::POST, "/api/coupons")
            .header("authorization", format!("Bearer {token}"))
            .body(r#"{"name":"NEW","amount":1}"#),
    );
    assert_eq!(created.await?.shown(), "403 forbidden");
    // Claims that are null are as good as not there.
    let mut nulls = claims(&json!({ "aud": null }))?;
    nulls["scope"] = Value::Null;
    nulls["scp"] = json!(["read"]);
    assert_eq!(show(&signer.token(None, &nulls)?).await?.status, 200);
    database.books().await
}

#[tokio::test]
async fn a_token_that_claims_sees_its_own_claim() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let environment = [
        ("JWT_SECRET", SECRET),
        ("API_TOKENS", "0123456789abcdef:claim"),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let signer = Signer::Hs256(SECRET.into());
    let token = |scope: &str| signer.token(None, &claims(&json!({ "aud": null, "scope": scope }))?);
    let show = async |token: &str, path: &str| {
        let request = api.show_request(path);
        answer(request.header("authorization", format!("Bearer {token}"))).await
    };
    let mine = token("claim")?;
    for user in ["anna", "bert"] {
        assert_eq!(claim(&api, user, "0123456789abcdef").await?.status, 200);
    }
    assert_eq!(
        show(&mine, "PROMO/claims/anna").await?.body["user_id"],
        "anna"
    );
    assert_eq!(
        show(&mine, "none/claims/anna").await?.shown(),
        "404 coupon_not_found"
    );
    for others in [
        "PROMO/claims/bert",
        "PROMO/claims/nobody",
        "none/claims/bert",
        "PROMO/claims/%ff",
        "PROMO/claims/Anna",
        "PROMO/claims",
        "PROMO",
    ] {
        let refused = show(&mine, others).await?;
        assert_eq!(refused.shown(), "403 forbidden", "{others}");
        assert!(
            refused
                .header("www-authenticate")
                .contains("scope=\"read\"")
        );
    }
    // Who may read sees everybody's; who may do neither, or is nobody, not even that.
    assert_eq!(
        show(&token("read")?, "PROMO/claims/bert").await?.status,
        200
    );
    for token in [token("admin")?, "0123456789abcdef".to_owned()] {
        let refused = show(&token, "PROMO/claims/anna").await?;
        assert_eq!(refused.shown(), "403 forbidden");
    }
    database.books().await
}

#[tokio::test]
async fn a_token_for_an_audience_is_refused_where_there_is_none() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let api = Api::start_with(database.caller_url(), &[("JWT_SECRET", SECRET)]).await?;
    let signer = Signer::Hs256(SECRET.into());
    let mut token = claims(&json!({ "aud": null }))?;
    assert_eq!(
        claim(&api, "anna", &signer.token(None, &token)?)
            .await?
            .status,
        200
    );
    for audience in [
        json!("shop"),
        json!(5),
        json!(null),
        json!({ "shop": 1 }),
        json!([5, "shop"]),
        json!([]),
    ] {
        token["aud"] = audience.clone();
        let refused = claim(&api, "anna", &signer.token(None, &token)?).await?;
        assert_eq!(refused.shown(), "401 unauthorized", "{audience}");
    }
    database.books().await
}

/// RFC 7515, 4.1.11: extensions that must be understood, and are not.
#[tokio::test]
async fn a_token_with_critical_extensions_is_refused() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let api = Api::start_with(database.caller_url(), &[("JWT_SECRET", SECRET)]).await?;
    let signer = Signer::Hs256(SECRET.into());
    let good = claims(&json!({ "aud": null }))?;
    for header in [
        json!({ "alg": "HS256", "crit": ["x"], "x": 1 }),
        json!({ "alg": "HS256", "crit": ["b64"], "b64": false }),
        json!({ "alg": "HS256", "crit": [] }),
        json!({ "alg": "HS256", "crit": "exp" }),
    ] {
        let token = signer.token_with(&header, &good)?;
        let refused = claim(&api, "anna", &token).await?;
        assert_eq!(refused.shown(), "401 unauthorized", "{header}");
    }
    database.books().await
}

/// What is read of a token before its signature costs time: it must not be much.
#[tokio::test]
async fn a_long_token_is_refused_unread() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let api = Api::start_with(database.caller_url(), &[("JWT_SECRET", SECRET)]).await?;
    let signer = Signer::Hs256(SECRET.into());
    let good = claims(&json!({ "aud": null }))?;
    for (filling, reason) in [(3_000, None), (9_000, Some("longer than 8 kB"))] {
        let header = json!({ "alg": "HS256", "x": "a".repeat(filling) });
        let told = claim(&api, "anna", &signer.token_with(&header, &good)?).await?;
        match reason {
            None => assert_eq!(told.status, 200),
            Some(reason) => {
                assert_eq!(told.shown(), "401 unauthorized");
                let challenge = told.header("www-authenticate");
                assert!(challenge.contains(reason), "{challenge}");
            }
        }
    }
    database.books().await
}

#[tokio::test]
async fn only_good_tokens_are_accepted() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (rs, es, stranger) = (Signer::rs256(2048)?, Signer::es256()?, Signer::es256()?);
    let hs = Signer::Hs256(SECRET.into());
    let jwks = directory.path().join("jwks.json");
    let mut encryption = Signer::es256()?.jwk("encryption");
    encryption["use"] = "enc".into();
    let keys = json!({ "keys": [
        rs.jwk("first"), es.jwk("second"), encryption,
        { "kty": "OKP", "crv": "Ed25519", "kid": "other", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" },
    ]});
    fs::write(&jwks, keys.to_string())?;
    let environment = [
        ("JWT_JWKS_FILE", jwks.to_str().context("no path")?),
        ("JWT_SECRET", SECRET),
        ("JWT_ISSUER", "https://issuer.example"),
        ("JWT_AUDIENCE", "honcho"),
    ];
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let api = Api::start_with(database.caller_url(), &environment).await?;

    let now = now()?;
    for (signer, id) in [(&rs, "first"), (&es, "second"), (&hs, "any")] {
        for (change, accepted) in [
            (json!({}), true),
            (json!({ "aud": ["other", "honcho"] }), true),
            (json!({ "nbf": now - 300 }), true),
            (json!({ "exp": now - 300 }), false),
            (json!({ "exp": null }), false),
            (json!({ "exp": "tomorrow" }), false),
            (json!({ "nbf": now + 300 }), false),
            (json!({ "iss": "https://other.example" }), false),
            (json!({ "iss": null }), false),
            (json!({ "aud": "other" }), false),
            (json!({ "aud": null }), false),
            (json!({ "sub": null }), false),
            (json!({ "sub": 17 }), false),
        ] {
            let case = format!("{} {change}", signer.algorithm());
            let answer = claim(&api, "anna", &signer.token(Some(id), &claims(&change)?)?).await?;
            if accepted {
                assert!(matches!(answer.status, 200 | 409), "{case}: {answer:?}");
            } else {
                assert_eq!(answer.shown(), "401 unauthorized", "{case}");
                assert!(
                    answer.header("www-authenticate").contains("invalid_token"),
                    "{answer:?}"
                );
            }
        }
        assert!(
            claim(&api, "anna", &signer.token(None, &claims(&json!({}))?)?)
                .await?
                .status
                != 401
        );
    }

    let good = claims(&json!({}))?;
    let token = es.token(Some("second"), &good)?;
    let (message, _) = token.rsplit_once('.').context("no signature")?;
    let tampered = format!(
        "{}.{}.{}",
        token.split('.').next().context("no header")?,
        BASE64.encode(claims(&json!({ "sub": "bert" }))?.to_string()),
        token.rsplit('.').next().context("no signature")?
    );
    // The public key as if it were a secret, which careless verifiers take for one.
    let confused = Signer::Hs256(rs.jwk("first")["n"].as_str().context("no n")?.into());
    for (case, user, bad) in [
        (
            "a stranger's",
            "anna",
            stranger.token(Some("second"), &good)?,
        ),
        (
            "a stranger's without kid",
            "anna",
            stranger.token(None, &good)?,
        ),
        ("an unknown kid", "anna", rs.token(Some("third"), &good)?),
        (
            "another key's kid",
            "anna",
            rs.token(Some("second"), &good)?,
        ),
        ("a changed one", "bert", tampered),
        ("no signature", "anna", format!("{message}.")),
        (
            "none",
            "anna",
            es.token_with(&json!({ "alg": "none" }), &good)?,
        ),
        (
            "a confused one",
            "anna",
            confused.token(Some("first"), &good)?,
        ),
        (
            "another secret's",
            "anna",
            Signer::Hs256(b"another secret of thirty-two bytes..".into()).token(None, &good)?,
        ),
        (
            "HS384",
            "anna",
            hs.token_with(&json!({ "alg": "HS384" }), &good)?,
        ),
        ("garbage", "anna", "a.b.c".to_owned()),
        ("half of one", "anna", message.to_owned()),
    ] {
        assert_eq!(
            claim(&api, user, &bad).await?.shown(),
            "401 unauthorized",
            "{case}"
        );
    }
    database.books().await
}

#[test]
fn short_rsa_keys_are_refused() -> Result<()> {
    let modulus = BASE64.encode([0xff; 128]);
    let jwks = tempfile::NamedTempFile::new()?;
    let keys = json!({ "keys": [{ "kty": "RSA", "kid": "short", "n": modulus, "e": "AQAB" }] });
    fs::write(jwks.path(), keys.to_string())?;
    let service = std::env::var_os("HONCHO_SERVICE").context("no HONCHO_SERVICE")?;
    let output = Command::new(service)
        .arg("--check")
        .env("DATABASE_URL", "postgres://user@localhost/shop")
        .env("JWT_JWKS_FILE", jwks.path())
        .output()?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("JWT_JWKS_FILE") && said.contains("2048 bits"),
        "{said}"
    );
    Ok(())
}
