//! Bounds: slow clients, floods and long waits cost them their own connection, and nobody else's.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use honcho_tests::{Database, PATIENCE, Service, eventually};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{interval, timeout},
};

use crate::fixtures::api::{Api, answer};

const MIB: u64 = 1024 * 1024;

/// Sends `bytes` one by one, a few each second, until the other side ends the connection; returns what
/// it said.
async fn drip(mut stream: TcpStream, bytes: &[u8]) -> Result<String> {
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
                    // Where it is closed already, the read above says so.
                    let byte = bytes.next().copied().unwrap_or_default();
                    let _ = stream.write_all(&[byte]).await;
                }
            }
        }
    };
    timeout(PATIENCE, ended)
        .await
        .context("the connection was never ended")?;
    Ok(String::from_utf8_lossy(&received).into_owned())
}

/// Sends `bytes`, and returns the stream and the head of the answer, read with its body.
async fn exchange(stream: &mut TcpStream, bytes: &str) -> Result<String> {
    stream.write_all(bytes.as_bytes()).await?;
    let mut received = Vec::new();
    let answered = async {
        while !received.ends_with(b"}") {
            if stream.read_buf(&mut received).await? == 0 {
                bail!("ended after {}", String::from_utf8_lossy(&received));
            }
        }
        Ok(())
    };
    timeout(PATIENCE, answered).await.context("no answer")??;
    Ok(String::from_utf8(received)?)
}

const SHOW: &str = "GET /api/coupons/PROMO HTTP/1.1\r\nhost: here\r\n\r\n";

/// The sockets that the service has open, its listener and those to the database among them.
fn sockets(service: &Service) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", service.pid()))?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count())
}

#[tokio::test]
async fn slow_heads_are_cut_off_and_disturb_nobody() -> Result<()> {
    let database = crate::database().await?;
    // More than can be claimed in the time.
    database.create_coupon("PROMO", 1_000_000).await?;
    let api = Api::start_with(database.caller_url(), &[("HEADER_TIMEOUT", "500ms")]).await?;
    let started = Instant::now();
    let mut slow = JoinSet::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(api.service.address()).await?;
        slow.spawn(async move {
            // Half of them have been served before.
            if n % 2 == 0 {
                exchange(&mut stream, SHOW).await?;
            }
            drip(
                stream,
                b"GET / HTTP/1.1\r\nx-padding: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            )
            .await
        });
    }
    let mut served = 0;
    while !slow.is_empty() {
        let told = api.claim(&format!("user_{served}"), "PROMO").await?;
        assert_eq!(told.shown(), "200", "{served}");
        served += 1;
        while let Some(ended) = slow.try_join_next() {
            assert_eq!(ended??, "");
        }
    }
    assert!(served > 10, "{served}");
    // They would have gone on for ever; the default for an idle connection is 75 seconds.
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "{:?}",
        started.elapsed()
    );
    database.books().await
}

#[tokio::test]
async fn a_body_that_drips_is_answered_408() -> Result<()> {
    let database = crate::database().await?;
    let api = Api::start_with(database.caller_url(), &[("BODY_TIMEOUT", "500ms")]).await?;
    for framing in ["content-length: 60000", "transfer-encoding: chunked"] {
        let mut stream = TcpStream::connect(api.service.address()).await?;
        let head = format!("POST /api/coupons HTTP/1.1\r\nhost: here\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        // To both framings this is a beginning that never ends.
        let received = drip(stream, b"1000\r\n{           ").await?;
        assert!(
            received.starts_with("HTTP/1.1 408 "),
            "{framing}: {received}"
        );
        let (_, body) = received.split_once("\r\n\r\n").context("no body")?;
        let problem: Value = serde_json::from_str(body)?;
        assert_eq!(problem["code"], "request_timeout");
    }
    // One that comes in pieces, but in time, is taken.
    let mut stream = TcpStream::connect(api.service.address()).await?;
    let head = "POST /api/coupons HTTP/1.1\r\nhost: here\r\ncontent-length: 27\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(br#"{"name":"PROMO""#).await?;
    stream.flush().await?;
    let received = exchange(&mut stream, r#","amount":1}"#).await?;
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
    let mut stream = TcpStream::connect(api.service.address()).await?;
    // Its requests keep it open beyond the time of idleness, and so does a request that takes longer.
    let started = Instant::now();
    let mut tick = interval(Duration::from_millis(300));
    while started.elapsed() < Duration::from_millis(2500) {
        tick.tick().await;
        assert!(
            exchange(&mut stream, SHOW)
                .await?
                .starts_with("HTTP/1.1 200 ")
        );
    }
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.execute("select honcho_claim('holder', 'PROMO')", &[])
        .await?;
    let body = r#"{"user_id":"user","coupon_name":"PROMO"}"#;
    let request = format!(
        "POST /api/coupons/claim HTTP/1.1\r\nhost: here\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let asked = Instant::now();
    let claim = exchange(&mut stream, &request);
    let release = async {
        // As long as it is served, time that passes is not idleness.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        Ok(held.commit().await?)
    };
    let (claim, release): (_, Result<()>) = tokio::join!(claim, release);
    release?;
    assert!(claim?.starts_with("HTTP/1.1 200 "));
    assert!(asked.elapsed() > Duration::from_secs(2));
    // Then it falls silent.
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .context("it was never closed")??;
    assert!(rest.is_empty());
    database.books().await
}

/// A coupon with a list of 30 MB.
async fn claimed(database: &Database) -> Result<()> {
    let client = database.connect().await?;
    client
        .batch_execute(
            "set session_replication_role = replica;
             insert into coupons (name, amount, remaining_amount) values ('PROMO', 300000, 0);
             insert into claims (user_id, coupon_name)
             select lpad(n::text, 100, 'u'), 'PROMO' from generate_series(1, 300000) n;",
        )
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_client_that_takes_in_nothing_is_cut_off() -> Result<()> {
    let database = crate::database().await?;
    claimed(&database).await?;
    let api = Api::start_with(database.caller_url(), &[("WRITE_TIMEOUT", "500ms")]).await?;
    assert_eq!(api.claim("nobody", "none").await?.status, 404);
    let before = sockets(&api.service)?;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = TcpStream::connect(api.service.address()).await?;
        stream.write_all(SHOW.as_bytes()).await?;
        streams.push(stream);
    }
    eventually("the lists to begin", async || {
        Ok((sockets(&api.service)? >= before + 5).then_some(()))
    })
    .await?;
    let started = Instant::now();
    // Connections to the database may have been added meanwhile: one for each reader.
    for stream in &mut streams {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
    }
    let cut = |received: usize| received < 30_000_000;
    eventually("the clients to be cut off", async || {
        let log = fs::read_to_string(format!("/proc/{}/net/tcp", api.service.pid()))?;
        let port = format!(":{:04X} ", api.service.address().port());
        // Established connections of which the service's end is ours: state 01.
        let open = log
            .lines()
            .filter(|line| {
                let mut fields = line.split_whitespace();
                let local = fields.nth(1).unwrap_or_default();
                format!("{local} ").ends_with(&port) && fields.nth(1) == Some("01")
            })
            .count();
        // The one that reqwest keeps.
        Ok((open <= 1).then_some(()))
    })
    .await?;
    assert!(
        started.elapsed() < Duration::from_secs(9),
        "{:?}",
        started.elapsed()
    );
    for mut stream in streams {
        let mut received = Vec::new();
        // A reset may come before the end of what was sent.
        let _ = stream.read_to_end(&mut received).await;
        assert!(cut(received.len()), "{}", received.len());
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_of_connections_is_turned_away() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let api = Api::start_with(database.caller_url(), &[("CONNECTION_LIMIT", "20")]).await?;
    let mut kept = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(api.service.address()).await?;
        exchange(&mut stream, SHOW).await?;
        kept.push(stream);
    }
    let before = api.service.resident_bytes()?;
    for _ in 0..2000 {
        let mut stream = TcpStream::connect(api.service.address()).await?;
        stream.write_all(SHOW.as_bytes()).await?;
        let mut received = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut received))
            .await
            .context("no answer")??;
        let (head, body) = received.split_once("\r\n\r\n").context("no body")?;
        assert!(head.starts_with("HTTP/1.1 503 "), "{received}");
        assert!(
            head.contains("retry-after: 1") && head.contains("connection: close"),
            "{received}"
        );
        let problem: Value = serde_json::from_str(body)?;
        assert_eq!(problem["code"], "overloaded");
    }
    let grown = api.service.resident_bytes()?.saturating_sub(before);
    assert!(grown < 4 * MIB, "the service grew by {} KiB", grown / 1024);
    // Once told, not two thousand times.
    let told = api.service.log().matches("20 connections are open").count();
    assert_eq!(told, 1, "{}", api.service.log());
    // Those who were there are served, and when one leaves there is room for another.
    for stream in &mut kept {
        assert!(exchange(stream, SHOW).await?.starts_with("HTTP/1.1 200 "));
    }
    kept.truncate(10);
    eventually("room", async || {
        let mut stream = TcpStream::connect(api.service.address()).await?;
        Ok(exchange(&mut stream, SHOW)
            .await?
            .starts_with("HTTP/1.1 200 ")
            .then_some(()))
    })
    .await
}

#[tokio::test]
async fn beyond_so_many_requests_the_next_is_shed_at_once() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 100).await?;
    database.create_coupon("OTHER", 100).await?;
    let environment = [
        ("REQUEST_LIMIT", "5"),
        ("LOCK_TIMEOUT", "20s"),
        ("STATEMENT_TIMEOUT", "40s"),
    ];
    let api = std::sync::Arc::new(Api::start_with(database.caller_url(), &environment).await?);
    let mut holder = database.connect().await?;
    let held = holder.transaction().await?;
    held.execute("select honcho_claim('holder', 'PROMO')", &[])
        .await?;
    let mut claims = JoinSet::new();
    for n in 0..5 {
        let api = std::sync::Arc::clone(&api);
        claims.spawn(async move {
            loop {
                let claim = api.claim(&format!("user_{n}"), "PROMO").await?;
                // A probe may have been in its place.
                if claim.shown() != "503 overloaded" {
                    return anyhow::Ok(claim);
                }
            }
        });
    }
    eventually("the claims to be under way", async || {
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
    // The documentation has the same bound. Whether the service works is told all the same.
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
async fn no_request_takes_longer_than_it_may() -> Result<()> {
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

    // One that reads has changed nothing: its sessions stand still.
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
            // One that has ended meanwhile reads nothing, too.
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
    // The outcome is what the same request tells.
    eventually("the outcome", async || {
        let again = api.claim("user", "PROMO").await?;
        Ok(matches!(again.shown().as_str(), "200" | "409 already_claimed").then_some(()))
    })
    .await?;
    database.books().await
}

#[tokio::test]
async fn there_is_a_file_for_every_connection() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 5).await?;
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 64 && exec \"$HONCHO_SERVICE\""])
        .env("DATABASE_URL", database.caller_url())
        .env("PORT", "0");
    let service = Service::spawn(command).await?;
    let mut streams = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(service.address()).await?;
        assert!(
            exchange(&mut stream, SHOW)
                .await?
                .starts_with("HTTP/1.1 200 ")
        );
        streams.push(stream);
    }
    assert!(
        !service.log().contains("cannot take connections"),
        "{}",
        service.log()
    );
    Ok(())
}
