//! The rate limit: a caller with too many requests gets 429 with a time to wait, and other callers do not.

use anyhow::Result;
use reqwest::{RequestBuilder, header::HeaderValue};

use crate::fixtures::api::{Answer, Api, answer};

const TOKENS: &str = "one-0123456789abcdef:read two-0123456789abcdef:read";

async fn api(environment: &[(&str, &str)]) -> Result<(honcho_tests::Database, Api)> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let api = Api::start_with(database.caller_url(), environment).await?;
    Ok((database, api))
}

/// Sends requests until the first 429, and returns the number before it.
async fn let_in(mut request: impl FnMut() -> RequestBuilder) -> Result<(u32, Answer)> {
    for n in 0..100 {
        let answer = answer(request()).await?;
        if answer.status == 429 {
            return Ok((n, answer));
        }
    }
    anyhow::bail!("no request was refused")
}

#[tokio::test]
async fn ratelimit_headers_tell_quota_and_reset() -> Result<()> {
    let (_database, api) = api(&[("RATE_LIMIT", "5/h")]).await?;
    for left in (0..5).rev() {
        let shown = api.show("PROMO").await?;
        assert_eq!(shown.status, 200);
        assert_eq!(shown.header("ratelimit-policy"), r#""default";q=5;w=3600"#);
        let state = shown.header("ratelimit");
        assert!(
            state.starts_with(&format!(r#""default";r={left};t="#)),
            "{state}"
        );
    }
    let refused = api.claim("user", "PROMO").await?;
    assert_eq!(refused.shown(), "429 rate_limited");
    let wait: u32 = refused.header("retry-after").parse()?;
    // A fifth of an hour, minus the time that has passed.
    assert!((600..=720).contains(&wait), "{wait}");
    assert_eq!(
        refused.header("ratelimit"),
        format!(r#""default";r=0;t={wait}"#)
    );
    // The documentation is under the limit; health and metrics are not.
    for (path, status) in [
        ("/openapi.json", 429),
        ("/docs/", 429),
        ("/nowhere", 429),
        ("/health/live", 200),
        ("/metrics", 200),
    ] {
        let page = api.request(reqwest::Method::GET, path).send().await?;
        assert_eq!(page.status(), status, "{path}");
        assert_eq!(page.headers().contains_key("ratelimit"), status == 429);
    }
    Ok(())
}

#[tokio::test]
async fn rate_limit_lets_in_again_after_a_wait() -> Result<()> {
    let (_database, api) = api(&[("RATE_LIMIT", "2/s")]).await?;
    let (_, refused) = let_in(|| api.show_request("PROMO")).await?;
    assert_eq!(refused.header("retry-after"), "1");
    honcho_tests::eventually("a request to be accepted again", async || {
        Ok((api.show("PROMO").await?.status == 200).then_some(()))
    })
    .await
}

#[tokio::test]
async fn forwarded_addresses_count_only_from_trusted_proxies() -> Result<()> {
    let from =
        |api: &Api, address: &str| api.show_request("PROMO").header("x-forwarded-for", address);
    let (_database, behind) = api(&[
        ("RATE_LIMIT", "3/h"),
        ("TRUSTED_PROXIES", "::ffff:127.0.0.1,10.0.0.0/8"),
    ])
    .await?;
    for client in [
        "192.0.2.1",
        "192.0.2.2",
        "2001:db8::1",
        "203.0.113.66, 192.0.2.3, 10.1.1.1",
    ] {
        assert_eq!(let_in(|| from(&behind, client)).await?.0, 3, "{client}");
    }
    // The same clients: with an entry that the client wrote itself, in the same IPv6 network, with a port.
    for client in ["198.51.100.1, 192.0.2.1", "2001:db8::2", "192.0.2.2:4711"] {
        assert_eq!(let_in(|| from(&behind, client)).await?.0, 0, "{client}");
    }
    // What is no text, written by the client, or empty does not hide the address.
    for value in [
        &b"\xff, 192.0.2.1"[..],
        b"192.0.2.1, ,10.1.1.1",
        b"192.0.2.1,",
    ] {
        let request = || {
            let value = HeaderValue::from_bytes(value).expect("a valid header");
            behind
                .show_request("PROMO")
                .header("x-forwarded-for", value)
        };
        assert_eq!(let_in(request).await?.0, 0, "{value:?}");
    }
    let (_database, exposed) = self::api(&[("RATE_LIMIT", "3/h")]).await?;
    let mut n = 0;
    let many = || {
        n += 1;
        from(&exposed, &format!("192.0.2.{n}"))
    };
    assert_eq!(let_in(many).await?.0, 3);
    Ok(())
}

#[tokio::test]
async fn rate_limit_can_count_by_token() -> Result<()> {
    let (_database, api) = api(&[
        ("RATE_LIMIT", "4/h"),
        ("RATE_LIMIT_BY", "token"),
        ("API_TOKENS", TOKENS),
    ])
    .await?;
    let with = |token: &str| {
        api.show_request("PROMO")
            .header("authorization", format!("Bearer {token}"))
    };
    assert_eq!(let_in(|| with("one-0123456789abcdef")).await?.0, 4);
    assert_eq!(let_in(|| with("two-0123456789abcdef")).await?.0, 4);
    // All requests with unknown tokens count as one caller.
    let mut n = 0;
    let guess = || {
        n += 1;
        with(&format!("guess-{n:016}"))
    };
    assert_eq!(let_in(guess).await?.0, 4);
    Ok(())
}
