//! SIGHUP: tokens, keys and certificates are read again, and the old ones stay if that fails.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::fixtures::{
    api::{Api, answer},
    signer::{Signer, claims},
};

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("no path")
}

impl Api {
    async fn status_for(&self, token: &str) -> Result<u16> {
        let request = self
            .show_request("PROMO")
            .header("authorization", format!("Bearer {token}"));
        Ok(answer(request).await?.status)
    }
}

#[tokio::test]
async fn reload_reads_tokens_again() -> Result<()> {
    const OLD: &str = "old-0123456789abcdef";
    const KEPT: &str = "kept-0123456789abcdef";
    const NEW: &str = "new-0123456789abcdef";
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("tokens");
    fs::write(&file, format!("{OLD}:read {KEPT}:read"))?;
    let environment = [
        ("API_TOKENS_FILE", text(&file)?),
        ("RATE_LIMIT", "1000/h"),
        ("RATE_LIMIT_BY", "token"),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    assert_eq!(api.status_for(OLD).await?, 200);
    assert_eq!(api.status_for(NEW).await?, 401);
    let left = async || -> Result<String> {
        let request = api
            .show_request("PROMO")
            .header("authorization", format!("Bearer {KEPT}"));
        let limit = answer(request).await?.header("ratelimit").to_owned();
        let left = limit
            .split(';')
            .find_map(|part| part.trim().strip_prefix("r="));
        Ok(left.context(limit.clone())?.to_owned())
    };
    let before: u32 = left().await?.parse()?;

    fs::write(&file, format!("{NEW}:claim\n{KEPT}:read"))?;
    api.reload("tokens: 1 new or changed, 1 gone or changed, 1 as before")
        .await?;
    assert_eq!(api.status_for(OLD).await?, 401);
    assert_eq!(api.status_for(NEW).await?, 403);
    // A caller keeps its quota, wherever its token now stands in the file.
    assert_eq!(left().await?.parse::<u32>()?, before - 1);

    // An invalid file changes nothing.
    for (wrong, said) in [
        ("", "holds no token"),
        (NEW, "must be a token, a colon"),
        ("new-0123456789abcdef:all", "claim, read, admin"),
    ] {
        fs::write(&file, wrong)?;
        api.reload(said).await?;
        assert_eq!(api.status_for(KEPT).await?, 200, "{wrong}");
        assert_eq!(api.status_for(NEW).await?, 403, "{wrong}");
    }
    fs::remove_file(&file)?;
    api.reload("cannot read").await?;
    assert_eq!(api.status_for(KEPT).await?, 200);
    database.books().await
}

/// A FIFO without a writer blocks its reader for ever.
#[tokio::test]
async fn unreadable_token_file_delays_neither_reload_nor_shutdown() -> Result<()> {
    const OLD: &str = "old-0123456789abcdef";
    const NEW: &str = "new-0123456789abcdef";
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("tokens");
    fs::write(&file, format!("{OLD}:read"))?;
    let environment = [("API_TOKENS_FILE", text(&file)?)];
    let mut api = Api::start_with(database.caller_url(), &environment).await?;
    let hang = || -> Result<()> {
        fs::remove_file(&file)?;
        let made = Command::new("mkfifo").arg(&file).status()?;
        ensure!(made.success(), "no FIFO");
        Ok(())
    };
    hang()?;
    api.reload("the old tokens, keys and certificates stay: the files took more than")
        .await?;
    assert_eq!(api.status_for(OLD).await?, 200);
    // Content that comes too late is not used: the reader reaches its end now.
    let late = format!("{NEW}:admin");
    let written = spawn_blocking({
        let file = file.clone();
        move || fs::write(file, late)
    });
    written.await??;
    assert_eq!(api.status_for(NEW).await?, 401);

    fs::remove_file(&file)?;
    fs::write(&file, format!("{NEW}:read"))?;
    api.reload("tokens: 1 new or changed, 1 gone or changed, 0 as before")
        .await?;
    assert_eq!(api.status_for(OLD).await?, 401);
    assert_eq!(api.status_for(NEW).await?, 200);

    hang()?;
    api.reload("the files took more than").await?;
    api.service.terminate()?;
    assert!(api.service.exit().await?.success());
    database.books().await
}

#[tokio::test]
async fn reload_reads_jwt_keys_again() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let directory = tempfile::tempdir()?;
    let (jwks, secret) = (
        directory.path().join("jwks"),
        directory.path().join("secret"),
    );
    let (old, new) = (Signer::es256()?, Signer::es256()?);
    fs::write(&jwks, old.jwks("old").to_string())?;
    fs::write(&secret, "the first secret of at least 32 bytes")?;
    let environment = [
        ("JWT_JWKS_FILE", text(&jwks)?),
        ("JWT_SECRET_FILE", text(&secret)?),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let shared = |secret: &str| Signer::Hs256(secret.into());
    let first = shared("the first secret of at least 32 bytes").reader()?;
    let second = shared("the second secret of at least 32 bytes").reader()?;
    for (token, status) in [
        (old.reader()?, 200),
        (new.reader()?, 401),
        (first.clone(), 200),
        (second.clone(), 401),
    ] {
        assert_eq!(api.status_for(&token).await?, status);
    }
    fs::write(&jwks, new.jwks("new").to_string())?;
    fs::write(&secret, "the second secret of at least 32 bytes")?;
    api.reload("keys, issuer and audience of JSON Web Tokens: changed")
        .await?;
    for (token, status) in [
        (old.reader()?, 401),
        (new.reader()?, 200),
        (first, 401),
        (second.clone(), 200),
    ] {
        assert_eq!(api.status_for(&token).await?, status);
    }
    fs::write(&jwks, "{}")?;
    api.reload("the old tokens, keys and certificates stay: JWT_JWKS_FILE")
        .await?;
    assert_eq!(api.status_for(&new.reader()?).await?, 200);
    assert_eq!(api.status_for(&second).await?, 200);
    Ok(())
}

/// Issuer and audience belong to the key: they change together with it.
#[tokio::test]
async fn reload_reads_issuer_and_audience_of_jwt_again() -> Result<()> {
    const SECRET: &str = "a secret of at least thirty-two bytes";
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("honcho.toml");
    let configure = |issuer: &str, audience: &str| {
        let settings = format!(
            "jwt_secret = \"{SECRET}\"\njwt_issuer = \"{issuer}\"\njwt_audience = \"{audience}\"\n"
        );
        fs::write(&file, settings)
    };
    configure("first", "shop")?;
    let environment = [("CONFIG_FILE", text(&file)?)];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let signer = Signer::Hs256(SECRET.into());
    let token = |issuer: &str, audience: &str| {
        let change = json!({ "iss": issuer, "aud": audience });
        signer.token(None, &claims(&change)?)
    };
    let (old, new) = (token("first", "shop")?, token("second", "till")?);
    assert_eq!(api.status_for(&old).await?, 200);
    assert_eq!(api.status_for(&new).await?, 401);
    api.reload("keys, issuer and audience of JSON Web Tokens: unchanged")
        .await?;
    configure("second", "till")?;
    api.reload("keys, issuer and audience of JSON Web Tokens: changed")
        .await?;
    assert_eq!(api.status_for(&old).await?, 401);
    assert_eq!(api.status_for(&new).await?, 200);
    Ok(())
}

#[tokio::test]
async fn reload_keeps_a_service_without_tokens_open() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 10).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("honcho.toml");
    fs::write(&file, "")?;
    let environment = [("CONFIG_FILE", text(&file)?)];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    api.reload("no tokens are configured").await?;
    assert_eq!(api.show("PROMO").await?.status, 200);
    fs::write(&file, "api_tokens = \"0123456789abcdef:read\"")?;
    api.reload("only a restart changes whether callers need a token at all")
        .await?;
    assert_eq!(api.show("PROMO").await?.status, 200);
    fs::write(&file, "database_url = \"postgresql://elsewhere/db\"")?;
    // The environment overrides the file.
    api.reload("new connections to the database use").await?;
    assert_eq!(api.claim("user", "PROMO").await?.shown(), "200");
    database.books().await
}
