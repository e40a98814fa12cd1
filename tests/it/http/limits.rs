//! Limits on connections and on requests in flight.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use honcho_tests::{PATIENCE, Service, eventually};
use reqwest::Method;
use tokio::{task::JoinSet, time::timeout};

use crate::fixtures::{
    MIB,
    api::Api,
    raw_client::{RawClient, SHOW, post, problem_code},
    scrape::until_in_flight,
    sql::row_counts,
};

#[tokio::test]
async fn connections_beyond_the_limit_are_503() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let api = Api::start_with(database.caller_url(), &[("CONNECTION_LIMIT", "20")]).await?;
    let mut kept = Vec::new();
    for _ in 0..20 {
        let mut client = RawClient::connect(api.service.address()).await?;
        client.exchange(SHOW).await?;
        kept.push(client);
    }
    let before = api.service.resident_bytes()?;
    for _ in 0..2000 {
        let mut client = RawClient::connect(api.service.address()).await?;
        client.send(SHOW).await?;
        let received = client.read_to_end().await?;
        assert!(received.starts_with("HTTP/1.1 503 "), "{received}");
        assert!(
            received.contains("retry-after: 1") && received.contains("connection: close"),
            "{received}"
        );
        assert_eq!(problem_code(&received)?, "overloaded");
    }
    let grown = api.service.resident_bytes()?.saturating_sub(before);
    assert!(grown < 4 * MIB, "the service grew by {} KiB", grown / 1024);
    // Logged once, not two thousand times.
    let answered = api.service.log().matches("20 connections are open").count();
    assert_eq!(answered, 1, "{}", api.service.log());
    // Existing connections are served, and a closed one makes room for another.
    for client in &mut kept {
        assert!(client.exchange(SHOW).await?.starts_with("HTTP/1.1 200 "));
    }
    kept.truncate(10);
    eventually("room for a connection", async || {
        let mut client = RawClient::connect(api.service.address()).await?;
        Ok(client
            .exchange(SHOW)
            .await?
            .starts_with("HTTP/1.1 200 ")
            .then_some(()))
    })
    .await
}

#[tokio::test]
async fn health_is_answered_beyond_the_connection_limit() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let environment = [("CONNECTION_LIMIT", "5"), ("HEADER_TIMEOUT", "60s")];
    let service = Service::start_with(database.caller_url(), &environment).await?;
    let mut kept = Vec::new();
    for _ in 0..5 {
        let mut client = RawClient::connect(service.address()).await?;
        client.exchange(SHOW).await?;
        kept.push(client);
    }
    // More silent connections than are kept beyond the limit.
    let mut silent = Vec::new();
    for _ in 0..1100 {
        silent.push(RawClient::connect(service.address()).await?);
    }
    for path in ["/health/live", "/health/ready", "/metrics"] {
        let mut client = RawClient::connect(service.address()).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
        client.send(&request).await?;
        let answer = client.read_to_end().await?;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    let probe = Service::command()?
        .args([
            "--health-check",
            "--port",
            &service.address().port().to_string(),
        ])
        .output()?;
    assert!(probe.status.success(), "{probe:?}");

    // All other requests are refused, and clients receive the refusal even if they send before they read.
    let big = "x".repeat(2_000_000);
    for request in [
        SHOW.to_owned(),
        "GET /docs/ HTTP/1.1\r\nhost: here\r\n\r\n".to_owned(),
        post(
            "/api/coupons/claim",
            "",
            r#"{"user_id":"u","coupon_name":"PROMO"}"#,
        ),
        post("/api/coupons", "", &big),
    ] {
        for _ in 0..20 {
            let mut client = RawClient::connect(service.address()).await?;
            client.send(&request).await?;
            let answer = client.read_to_end().await?;
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            assert!(answer.contains("retry-after: 1"), "{answer}");
            assert_eq!(problem_code(&answer)?, "overloaded");
        }
    }
    assert_eq!(row_counts(&database).await?, (1, 0));
    // The first connections still work.
    for client in &mut kept {
        client.exchange(SHOW).await?;
    }
    Ok(())
}

#[tokio::test]
async fn connections_of_a_rush_queue_until_they_are_accepted() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let api = Api::start(database.caller_url()).await?;
    api.until_ready().await?;
    // A service that is too busy to accept any.
    api.service.freeze()?;
    let mut clients = Vec::new();
    for n in 0..600 {
        let connected = timeout(PATIENCE, RawClient::connect(api.service.address())).await;
        let mut client = connected.with_context(|| format!("connection {n} was not queued"))??;
        client.send(SHOW).await?;
        clients.push(client);
    }
    api.service.thaw()?;
    for mut client in clients {
        let answer = client.read_until("[]}").await?;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn requests_beyond_the_limit_are_shed_immediately() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    database.create_coupon("OTHER", 100).await?;
    let environment = [
        ("REQUEST_LIMIT", "5"),
        ("LOCK_TIMEOUT", "20s"),
        ("STATEMENT_TIMEOUT", "40s"),
    ];
    let api = Arc::new(Api::start_with(database.caller_url(), &environment).await?);
    api.until_ready().await?;
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.execute("select honcho_claim('holder', 'PROMO')", &[])
        .await?;
    let mut claims = JoinSet::new();
    for n in 0..5 {
        let api = Arc::clone(&api);
        claims.spawn(async move {
            loop {
                let claim = api.claim(&format!("user_{n}"), "PROMO").await?;
                // The probe below may have taken the place.
                if claim.shown() != "503 overloaded" {
                    return anyhow::Ok(claim);
                }
            }
        });
    }
    eventually("the claims to be in flight", async || {
        Ok((api.claim("probe", "none").await?.status == 503).then_some(()))
    })
    .await?;
    for _ in 0..100 {
        let asked = Instant::now();
        let shed = api.claim("user", "OTHER").await?;
        assert_eq!(shed.shown(), "503 overloaded");
        assert!(
            asked.elapsed() < Duration::from_secs(1),
            "{:?}",
            asked.elapsed()
        );
    }
    // The documentation is under the same limit; health and metrics are not.
    for (path, status) in [
        ("/openapi.json", 503),
        ("/docs/", 503),
        ("/health/live", 200),
        ("/health/ready", 200),
        ("/metrics", 200),
    ] {
        let page = api.request(Method::GET, path).send().await?;
        assert_eq!(page.status(), status, "{path}");
    }
    held.commit().await?;
    while let Some(claim) = claims.join_next().await {
        assert_eq!(claim??.status, 200);
    }
    assert_eq!(api.claim("user", "OTHER").await?.status, 200);
    database.books().await
}

#[tokio::test]
async fn requests_waiting_for_their_bodies_do_not_count_towards_the_limit() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let environment = [("REQUEST_LIMIT", "5"), ("BODY_TIMEOUT", "60s")];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let body = r#"{"user_id":"user_10","coupon_name":"PROMO"}"#;
    let mut unfinished = Vec::new();
    for n in 10..30 {
        let mut client = RawClient::connect(api.service.address()).await?;
        let request = post(
            "/api/coupons/claim",
            "",
            &body.replace("10", &n.to_string()),
        );
        let (now, later) = request.split_at(request.len() - 5);
        client.send(now).await?;
        unfinished.push((client, later.to_owned()));
    }
    until_in_flight(&api.service, 20.0).await?;
    for n in 0..10 {
        assert_eq!(api.show("PROMO").await?.status, 200);
        assert_eq!(api.claim(&format!("other_{n}"), "PROMO").await?.status, 200);
    }
    for (client, later) in &mut unfinished {
        client.send(later).await?;
        assert!(client.read_until("}").await?.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(row_counts(&database).await?, (1, 30));
    database.books().await
}

#[tokio::test]
async fn reads_that_announce_bodies_count_towards_the_limit() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let environment = [
        ("REQUEST_LIMIT", "5"),
        ("LOCK_TIMEOUT", "20s"),
        ("STATEMENT_TIMEOUT", "40s"),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let announcing = [
        "GET /api/coupons/PROMO HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\n",
        "GET /api/coupons/PROMO HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n",
        "HEAD /api/coupons/PROMO HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\n",
        "OPTIONS /api/coupons/PROMO HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\n",
    ];
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.batch_execute("lock table coupons in access exclusive mode")
        .await?;
    let mut waiting = Vec::new();
    for n in 0..5 {
        let mut client = RawClient::connect(api.service.address()).await?;
        client.send(announcing[n % 2]).await?;
        waiting.push(client);
    }
    until_in_flight(&api.service, 5.0).await?;
    assert_eq!(api.show("PROMO").await?.shown(), "503 overloaded");
    for request in announcing {
        let mut client = RawClient::connect(api.service.address()).await?;
        client.send(request).await?;
        let answer = client.read_to_end().await?;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{request}: {answer}");
    }
    held.rollback().await?;
    for client in &mut waiting {
        assert!(client.read_until("}").await?.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(api.show("PROMO").await?.status, 200);
    database.books().await
}

#[tokio::test]
async fn file_limit_is_raised_for_connections() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 64 && exec \"$HONCHO_SERVICE\""])
        .env("DATABASE_URL", database.caller_url())
        .env("PORT", "0");
    let service = Service::spawn(command).await?;
    let mut clients = Vec::new();
    for _ in 0..300 {
        let mut client = RawClient::connect(service.address()).await?;
        assert!(client.exchange(SHOW).await?.starts_with("HTTP/1.1 200 "));
        clients.push(client);
    }
    assert!(
        !service.log().contains("cannot accept connections"),
        "{}",
        service.log()
    );
    Ok(())
}
