//! JSON Web Tokens: validation, and the rights of their subjects.

use std::fs;

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixtures::{
    api::{Answer, Api, answer},
    program::{DATABASE_URL, refusal},
    signer::{Signer, claims, now},
};

const SECRET: &str = "a secret of at least thirty-two bytes";

async fn claim(api: &Api, user: &str, token: &str) -> Result<Answer> {
    answer(
        api.claim_request(user, "PROMO")
            .header("authorization", format!("Bearer {token}")),
    )
    .await
}

#[tokio::test]
async fn jwt_claims_only_for_its_subject() -> Result<()> {
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
    // The refusal does not reveal if the coupon exists.
    let foreign = api
        .claim_request("bert", "none")
        .header("authorization", format!("Bearer {token}"));
    assert_eq!(answer(foreign).await?.shown(), "403 forbidden");
    // A configured token may claim for any user.
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
        // Some identity providers send both claims, or one of them as null.
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
    // A claim that is null counts as absent.
    let mut nulls = claims(&json!({ "aud": null }))?;
    nulls["scope"] = Value::Null;
    nulls["scp"] = json!(["read"]);
    assert_eq!(show(&signer.token(None, &nulls)?).await?.status, 200);
    database.books().await
}

#[tokio::test]
async fn jwt_acts_and_reads_only_for_its_subject() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let environment = [
        ("JWT_SECRET", SECRET),
        ("API_TOKENS", "0123456789abcdef:claim,read"),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let signer = Signer::Hs256(SECRET.into());
    let token = |scope: &str| signer.token(None, &claims(&json!({ "aud": null, "scope": scope }))?);
    let mine = token("claim")?;
    let send = async |token: &str, method: &Method, path: &str, body: &Value| {
        let request = api.request(method.clone(), path).json(body);
        answer(request.header("authorization", format!("Bearer {token}"))).await
    };
    let coupon = "/api/coupons/PROMO";
    let none = json!({});
    // In this order each of them succeeds, for the token's subject and for a configured token.
    let operations = |user: &str| {
        let (hold, claim) = (
            format!("{coupon}/holds/{user}"),
            format!("{coupon}/claims/{user}"),
        );
        let reservation = (
            Method::POST,
            format!("{coupon}/holds"),
            json!({ "user_id": user }),
            201,
        );
        let users = json!({ "user_ids": [user] });
        [
            reservation.clone(),
            (Method::GET, hold.clone(), none.clone(), 200),
            (Method::DELETE, hold.clone(), none.clone(), 200),
            reservation,
            (Method::POST, format!("{hold}/confirm"), none.clone(), 200),
            (Method::GET, claim.clone(), none.clone(), 200),
            (
                Method::GET,
                format!("/api/users/{user}/claims"),
                none.clone(),
                200,
            ),
            (Method::DELETE, claim, none.clone(), 200),
            (Method::POST, format!("{coupon}/claims"), users, 200),
        ]
    };
    for (method, path, body, _) in operations("bert") {
        let refused = send(&mine, &method, &path, &body).await?;
        assert_eq!(refused.shown(), "403 forbidden", "{method} {path}");
    }
    for (token, user) in [(&*mine, "anna"), ("0123456789abcdef", "bert")] {
        for (method, path, body, status) in operations(user) {
            let done = send(token, &method, &path, &body).await?;
            assert_eq!(done.status, status, "{method} {path}: {done:?}");
        }
    }
    // Others' are read with `read`, and still not changed.
    let reader = token("claim read")?;
    for (method, path, body, _) in operations("bert") {
        let answered = send(&reader, &method, &path, &body).await?;
        assert_eq!(
            answered.status == 403,
            method != Method::GET,
            "{method} {path}"
        );
    }
    // Lists of all users, a batch with another's name among one's own, and names that are no text.
    for (method, path, body) in [
        (Method::GET, format!("{coupon}/holds"), none.clone()),
        (Method::GET, format!("{coupon}/stock"), none.clone()),
        (
            Method::POST,
            format!("{coupon}/claims"),
            json!({ "user_ids": ["anna", "bert"] }),
        ),
        (Method::GET, format!("{coupon}/holds/%ff"), none.clone()),
        (Method::DELETE, format!("{coupon}/holds/%ff"), none.clone()),
        (
            Method::GET,
            "/api/users/%ff/claims".to_owned(),
            none.clone(),
        ),
        (Method::DELETE, coupon.to_owned(), none.clone()),
        (Method::PATCH, coupon.to_owned(), none.clone()),
        (
            Method::POST,
            format!("{coupon}/restock"),
            json!({ "delta": 1 }),
        ),
    ] {
        let refused = send(&mine, &method, &path, &body).await?;
        assert_eq!(refused.shown(), "403 forbidden", "{method} {path}");
    }
    database.books().await
}

#[tokio::test]
async fn jwt_with_claim_scope_reads_only_its_own_claim() -> Result<()> {
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
    // `read` shows all claims. Without `read` and `claim`, or without a subject, not even one's own is shown.
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
async fn jwt_with_an_audience_is_refused_if_none_is_configured() -> Result<()> {
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

/// RFC 7515, 4.1.11: a token with critical extensions that are not understood is invalid.
#[tokio::test]
async fn jwt_with_critical_extensions_is_refused() -> Result<()> {
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

/// Parsing a token before its signature is verified costs time, so its length is limited.
#[tokio::test]
async fn token_beyond_8_kb_is_refused() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let api = Api::start_with(database.caller_url(), &[("JWT_SECRET", SECRET)]).await?;
    let signer = Signer::Hs256(SECRET.into());
    let good = claims(&json!({ "aud": null }))?;
    for (filling, reason) in [(3_000, None), (9_000, Some("longer than 8 kB"))] {
        let header = json!({ "alg": "HS256", "x": "a".repeat(filling) });
        let answered = claim(&api, "anna", &signer.token_with(&header, &good)?).await?;
        match reason {
            None => assert_eq!(answered.status, 200),
            Some(reason) => {
                assert_eq!(answered.shown(), "401 unauthorized");
                let challenge = answered.header("www-authenticate");
                assert!(challenge.contains(reason), "{challenge}");
            }
        }
    }
    database.books().await
}

#[tokio::test]
async fn jwt_with_a_wrong_signature_or_claim_is_refused() -> Result<()> {
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
            (json!({ "sub": "" }), false),
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
    // The public key used as an HMAC secret, which careless verifiers accept.
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
fn jwks_with_a_key_that_verifies_no_token_is_refused() -> Result<()> {
    let rsa = |bytes: &[u8]| json!({ "kty": "RSA", "kid": "bad", "n": BASE64.encode(bytes), "e": "AQAB" });
    let mut padded = vec![0xff; 256];
    padded[0] = 0;
    let mut exponent = rsa(&[0xff; 256]);
    exponent["e"] = "AQ".into();
    let mut short_x = Signer::es256()?.jwk("bad");
    short_x["x"] = BASE64.encode([1; 31]).into();
    let mut off_the_curve = Signer::es256()?.jwk("bad");
    off_the_curve["x"] = BASE64.encode([1; 32]).into();
    let mut encryption = Signer::es256()?.jwk("bad");
    encryption["key_ops"] = json!(["encrypt"]);
    let jwks = tempfile::NamedTempFile::new()?;
    let file = jwks.path().to_str().context("no path")?;
    for (key, reason) in [
        (rsa(&[0xff; 128]), "key bad has 1024 bits"),
        (rsa(&padded), "key bad has 2040 bits"),
        (rsa(&[0xff; 1125]), "key bad has 9000 bits"),
        (rsa(&[0xfe; 256]), "key bad has an even modulus"),
        (exponent, "key bad has a wrong exponent"),
        (short_x, "key bad is no point on P-256"),
        (off_the_curve, "key bad is no point on P-256"),
        (encryption, "holds no key for RS256 or ES256 signatures"),
    ] {
        fs::write(jwks.path(), json!({ "keys": [key] }).to_string())?;
        let said = refusal(&["--check"], &[DATABASE_URL, ("JWT_JWKS_FILE", file)])?;
        assert!(
            said.contains("JWT_JWKS_FILE") && said.contains(reason),
            "{said}"
        );
    }
    Ok(())
}

/// Some encoders write the sign byte of ASN.1 before the modulus.
#[tokio::test]
async fn jwks_with_zero_bytes_before_the_numbers_verifies_tokens() -> Result<()> {
    let signer = Signer::rs256(2048)?;
    let mut key = signer.jwk("padded");
    for name in ["n", "e"] {
        let number = BASE64.decode(key[name].as_str().context("no number")?)?;
        key[name] = BASE64.encode([&[0], &number[..]].concat()).into();
    }
    let jwks = tempfile::NamedTempFile::new()?;
    fs::write(jwks.path(), json!({ "keys": [key] }).to_string())?;
    let file = jwks.path().to_str().context("no path")?;
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let api = Api::start_with(database.caller_url(), &[("JWT_JWKS_FILE", file)]).await?;
    let token = signer.token(Some("padded"), &claims(&json!({ "aud": null }))?)?;
    assert_eq!(claim(&api, "anna", &token).await?.status, 200);
    database.books().await
}

#[tokio::test]
async fn refusal_of_a_jwt_names_the_reason_if_several_keys_fit() -> Result<()> {
    let (first, second) = (Signer::es256()?, Signer::es256()?);
    let jwks = tempfile::NamedTempFile::new()?;
    let keys = json!({ "keys": [first.jwk("one"), second.jwk("one")] });
    fs::write(jwks.path(), keys.to_string())?;
    let file = jwks.path().to_str().context("no path")?;
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let api = Api::start_with(database.caller_url(), &[("JWT_JWKS_FILE", file)]).await?;
    let now = now()?;
    let stranger = Signer::es256()?;
    let expired = json!({ "aud": null, "exp": now - 300 });
    let early = json!({ "aud": null, "nbf": now + 300 });
    for (signer, change, reason) in [
        (&first, &expired, "the token has expired"),
        (&second, &expired, "the token has expired"),
        (&first, &early, "the token is not valid yet"),
        (&second, &early, "the token is not valid yet"),
        (&stranger, &expired, "the token's signature is wrong"),
    ] {
        for id in [Some("one"), None] {
            let refused = claim(&api, "anna", &signer.token(id, &claims(change)?)?).await?;
            assert_eq!(refused.shown(), "401 unauthorized");
            let challenge = refused.header("www-authenticate");
            assert!(challenge.contains(reason), "{challenge}");
        }
    }
    database.books().await
}

/// A blank at the end of a secret belongs to it; the line end that an editor writes does not.
#[tokio::test]
async fn jwt_secret_file_ends_before_one_line_end() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let secret = format!("{SECRET} \t");
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), format!("{secret}\r\n"))?;
    let path = file.path().to_str().context("no path")?;
    let api = Api::start_with(database.caller_url(), &[("JWT_SECRET_FILE", path)]).await?;
    for (secret, status) in [(&*secret, 200), (SECRET, 401)] {
        let signer = Signer::Hs256(secret.into());
        let token = signer.token(None, &claims(&json!({ "aud": null }))?)?;
        assert_eq!(claim(&api, "anna", &token).await?.status, status);
    }
    database.books().await
}
