//! Deadlines of heads, bodies, idle connections and requests.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use honcho_tests::{PATIENCE, eventually};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{interval, timeout},
};

use crate::fixtures::{
    api::{Api, answer},
    raw_client::{RawClient, SHOW, post, problem_code},
};

/// Sends `bytes` one at a time, over and over, until the service ends the connection. Returns what was
/// received.
async fn drip(client: RawClient, bytes: &[u8]) -> Result<String> {
    let mut stream = client.stream;
    let mut received = Vec::new();
    let mut tick = interval(Duration::from_millis(50));
    let mut bytes = bytes.iter().cycle();
    let ended = async {
        loop {
            tokio::select! {
                read = stream.read_buf(&mut received) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
                _ = tick.tick() => {
                    // If the connection is closed already, the read above reports it.
                    let byte = bytes.next().copied().unwrap_or_default();
                    let _ = stream.write_all(&[byte]).await;
                }
            }
        }
    };
    timeout(PATIENCE, ended)
        .await
        .context("the connection was not closed")?;
    Ok(String::from_utf8_lossy(&received).into_owned())
}

#[tokio::test]
async fn slow_heads_are_cut_off_while_claims_are_served() -> Result<()> {
    let database = crate::database().await?;
    // More stock than can be claimed during the test.
    database.create_coupon("PROMO", 1_000_000).await?;
    let api = Api::start_with(database.caller_url(), &[("HEADER_TIMEOUT", "500ms")]).await?;
    let started = Instant::now();
    let mut slow = JoinSet::new();
    for n in 0..200 {
        let mut client = RawClient::connect(api.service.address()).await?;
        slow.spawn(async move {
            // Half of the connections have served a request before.
            if n % 2 == 0 {
                client.exchange(SHOW).await?;
            }
            drip(
                client,
                b"GET / HTTP/1.1\r\nx-padding: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            )
            .await
        });
    }
    let mut served = 0;
    while !slow.is_empty() {
        let answered = api.claim(&format!("user_{served}"), "PROMO").await?;
        assert_eq!(answered.shown(), "200", "{served}");
        served += 1;
        while let Some(ended) = slow.try_join_next() {
            assert_eq!(ended??, "");
        }
    }
    assert!(served > 10, "{served}");
    // Without a limit they would go on for ever; the default for idle connections is 75 seconds.
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "{:?}",
        started.elapsed()
    );
    database.books().await
}

#[tokio::test]
async fn slow_body_is_408() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start_with(database.caller_url(), &[("BODY_TIMEOUT", "500ms")]).await?;
    for framing in ["content-length: 60000", "transfer-encoding: chunked"] {
        let mut client = RawClient::connect(api.service.address()).await?;
        let head = format!("POST /api/coupons HTTP/1.1\r\nhost: here\r\n{framing}\r\n\r\n");
        client.send(&head).await?;
        // For both framings, these bytes begin a body that never ends.
        let received = drip(client, b"1000\r\n{           ").await?;
        assert!(
            received.starts_with("HTTP/1.1 408 "),
            "{framing}: {received}"
        );
        assert_eq!(problem_code(&received)?, "request_timeout");
    }
    // A body that comes in pieces within the time is accepted.
    let mut client = RawClient::connect(api.service.address()).await?;
    let head = "POST /api/coupons HTTP/1.1\r\nhost: here\r\ncontent-length: 27\r\n\r\n";
    client.send(head).await?;
    client.send(r#"{"name":"PROMO""#).await?;
    let received = client.exchange(r#","amount":1}"#).await?;
    assert!(received.starts_with("HTTP/1.1 201 "), "{received}");
    database.books().await
}

#[tokio::test]
async fn idle_connections_are_closed_and_busy_ones_kept() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let environment = [
        ("IDLE_TIMEOUT", "1s"),
        ("HEADER_TIMEOUT", "1s"),
        ("LOCK_TIMEOUT", "20s"),
        ("STATEMENT_TIMEOUT", "40s"),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let mut client = RawClient::connect(api.service.address()).await?;
    // Requests keep the connection open for longer than the idle timeout, and so does a request that takes
    // longer.
    let started = Instant::now();
    let mut tick = interval(Duration::from_millis(300));
    while started.elapsed() < Duration::from_millis(2500) {
        tick.tick().await;
        assert!(client.exchange(SHOW).await?.starts_with("HTTP/1.1 200 "));
    }
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.execute("select honcho_claim('holder', 'PROMO')", &[])
        .await?;
    let body = r#"{"user_id":"user","coupon_name":"PROMO"}"#;
    let request = post("/api/coupons/claim", "", body);
    let asked = Instant::now();
    let claim = client.exchange(&request);
    let release = async {
        // No condition can replace this sleep: the test is about time that passes during a request, which is
        // not idle time.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        Ok(held.commit().await?)
    };
    let (claim, release): (_, Result<()>) = tokio::join!(claim, release);
    release?;
    assert!(claim?.starts_with("HTTP/1.1 200 "));
    assert!(asked.elapsed() > Duration::from_secs(2));
    // Then the connection is idle.
    assert_eq!(client.read_to_end().await?, "");
    database.books().await
}

#[tokio::test]
async fn request_timeout_bounds_every_request() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    let environment = [
        ("REQUEST_TIMEOUT", "1s"),
        ("LOCK_TIMEOUT", "20s"),
        ("STATEMENT_TIMEOUT", "40s"),
    ];
    let api = Api::start_with(database.caller_url(), &environment).await?;
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.batch_execute("lock table coupons in access exclusive mode")
        .await?;
    let asked = Instant::now();
    let body = r#"{"name":"NEW","amount":1}"#;
    let (claim, create) = tokio::join!(
        api.claim("user", "PROMO"),
        answer(api.request(Method::POST, "/api/coupons").body(body)),
    );
    assert_eq!(claim?.shown(), "503 outcome_unknown");
    assert_eq!(create?.shown(), "503 outcome_unknown");
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    held.rollback().await?;

    // Reads have changed nothing. They time out because their sessions are stopped.
    let sessions = "select pid from pg_stat_activity
                     where datname = current_database() and application_name = 'honcho-service'";
    let stopped: Vec<i32> = holder
        .query(sessions, &[])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    let signal = |signal| -> Result<()> {
        for pid in &stopped {
            let pid = Pid::from_raw(*pid).context("no process id")?;
            // A session may have ended meanwhile.
            let _ = kill_process(pid, signal);
        }
        Ok(())
    };
    signal(Signal::STOP)?;
    let asked = Instant::now();
    let shown = api.show("PROMO").await;
    signal(Signal::CONT)?;
    assert_eq!(shown?.shown(), "504 timeout");
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    // Repeating the request tells the outcome.
    eventually("a certain outcome", async || {
        let again = api.claim("user", "PROMO").await?;
        Ok(matches!(again.shown().as_str(), "200" | "409 already_claimed").then_some(()))
    })
    .await?;
    database.books().await
}
