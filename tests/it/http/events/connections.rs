//! Streams as connections: bounds, clients that do not read, ends, and what they cost others.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use honcho_tests::{PATIENCE, Service, eventually};
use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{ALL, PROMO, restock, restock_at_once, until_open, written};
use crate::fixtures::{
    MIB,
    api::Api,
    event_stream::{EventStream, refused},
    scrape::Scrape,
};

#[tokio::test]
async fn comments_keep_a_stream_open_beyond_all_timeouts() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let settings = [
        ("HEARTBEAT_INTERVAL", "100ms"),
        ("REQUEST_TIMEOUT", "2s"),
        ("IDLE_TIMEOUT", "2s"),
        ("HEADER_TIMEOUT", "2s"),
    ];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    for path in [PROMO, ALL] {
        let begun = Instant::now();
        let mut stream = EventStream::open(&api, path, None).await?;
        stream.until_comments(25).await?;
        assert!(begun.elapsed() > Duration::from_millis(2_400));
        let client = database.connect().await?;
        restock(&client, "PROMO", 1).await?;
        stream.until("restocked").await?;
    }
    // A client that leaves breaks nothing off.
    until_open(&api, 0.0).await?;
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(scrape.value("honcho_http_answers_broken_off_total"), 0.0);
    assert!(
        !api.service.log().contains("broke off"),
        "{}",
        api.service.log()
    );
    Ok(())
}

/// Streams take neither the permits of requests nor the connections of claims.
#[tokio::test]
async fn streams_have_a_bound_of_their_own() -> Result<()> {
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1_000).await?;
    let settings = [
        ("STREAM_LIMIT", "20"),
        ("REQUEST_LIMIT", "1"),
        ("DATABASE_POOL_SIZE", "1"),
    ];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(EventStream::open(&api, PROMO, None).await?);
    }
    for path in [PROMO, ALL] {
        let refusal = refused(api.request(Method::GET, path)).await?;
        assert_eq!(refusal.shown(), "503 overloaded");
        assert!(!refusal.header("retry-after").is_empty());
    }
    for n in 0..100 {
        assert_eq!(
            api.claim(&format!("user_{n}"), "PROMO").await?.shown(),
            "200"
        );
    }
    for stream in &mut streams {
        stream
            .until_stock(|stock| stock["remaining_amount"] == 900)
            .await?;
    }
    let client = database.connect().await?;
    let connections = "select count(*) from pg_stat_activity
                        where datname = current_database() and application_name = 'honcho-service'";
    let connections: i64 = client.query_one(connections, &[]).await?.get(0);
    assert_eq!(connections, 1);
    streams.pop();
    until_open(&api, 19.0).await?;
    EventStream::open(&api, ALL, None).await?;
    database.books().await
}

#[tokio::test]
async fn polls_stop_with_the_last_watcher() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    database.create_coupon("PROMO", 5).await?;
    let api = Api::start(database.caller_url()).await?;
    let polls = async || -> Result<f64> {
        let scrape = Scrape::of(&api.service).await?;
        Ok(scrape.value("honcho_event_polls_total"))
    };
    assert_eq!(polls().await?, 0.0);
    for _ in 0..2 {
        let before = polls().await?;
        let mut stream = EventStream::open(&api, PROMO, None).await?;
        eventually("polls", async || {
            Ok((polls().await? > before + 3.0).then_some(()))
        })
        .await?;
        restock(&client, "PROMO", 1).await?;
        stream.until("restocked").await?;
        drop(stream);
        until_open(&api, 0.0).await?;
        // Events that no client watches are not for the next watcher.
        restock(&client, "PROMO", 1).await?;
        let quiet = "select max(query_start) < clock_timestamp() - interval '1 second'
                       from pg_stat_activity
                      where datname = current_database() and application_name = 'honcho-service'";
        eventually("a second without polls", async || {
            Ok(client
                .query_one(quiet, &[])
                .await?
                .get::<_, bool>(0)
                .then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// Opens a stream on a connection with a small receive window, and reads its first byte.
async fn open_unread(service: &Service, path: &str) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(service.address()).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    Ok(stream)
}

#[tokio::test]
async fn watcher_that_reads_nothing_is_cut_off() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    // Events of a kilobyte.
    let name = "\u{10348}".repeat(255);
    database.create_coupon(&name, 1).await?;
    let api = Api::start_with(database.caller_url(), &[("WRITE_TIMEOUT", "500ms")]).await?;
    let mut unread = Vec::new();
    for _ in 0..50 {
        unread.push(open_unread(&api.service, ALL).await?);
    }
    let mut reader = EventStream::open(&api, ALL, None).await?;
    until_open(&api, 51.0).await?;
    let before = api.service.resident_bytes()?;
    restock_at_once(&client, &name, 2_000).await?;
    let mut received = Vec::new();
    for _ in 0..2_000 {
        received.extend(reader.until("restocked").await?.id);
    }
    assert_eq!(received, written(&client, None).await?[1..]);
    // The 2 MB of events are there a few times at most, and not for each of those that do not read them.
    let peak = api.service.peak_resident_bytes()?;
    assert!(peak < before + 40 * MIB, "{} MiB", (peak - before) / MIB);
    until_open(&api, 1.0).await?;
    api.service
        .logged("received nothing of an answer for 500ms and is cut off")
        .await?;
    let scrape = Scrape::of(&api.service).await?;
    assert_eq!(scrape.value("honcho_connections_cut_off_total"), 50.0);
    restock(&client, &name, 1).await?;
    reader.until("restocked").await?;
    Ok(())
}

#[tokio::test]
async fn watcher_that_reads_nothing_does_not_delay_the_exit() -> Result<()> {
    let database = crate::database().await?;
    let client = database.connect().await?;
    // Events of a kilobyte.
    let name = "\u{10348}".repeat(255);
    database.create_coupon(&name, 1).await?;
    let settings = [("WRITE_TIMEOUT", "300s"), ("SHUTDOWN_TIMEOUT", "300s")];
    let mut api = Api::start_with(database.caller_url(), &settings).await?;
    let mut unread = Vec::new();
    for path in [ALL, ALL, &format!("/api/coupons/{name}/events")] {
        unread.push(open_unread(&api.service, path).await?);
    }
    let mut reader = EventStream::open(&api, ALL, None).await?;
    restock_at_once(&client, &name, 2_000).await?;
    for _ in 0..2_000 {
        reader.until("restocked").await?;
    }
    api.service.terminate()?;
    // Of what is ready, readers receive all.
    assert_eq!(reader.rest().await?, []);
    assert!(api.service.exit().await?.success());
    Ok(())
}

#[tokio::test]
async fn stream_ends_when_its_token_is_withdrawn() -> Result<()> {
    const TOKEN: &str = "read-0123456789abcdef";
    const OTHER: &str = "claim-0123456789abcdef";
    let database = crate::database().await?;
    database.create_coupon("PROMO", 1).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("tokens");
    fs::write(&file, format!("{TOKEN}:read {OTHER}:claim"))?;
    let settings = [
        ("API_TOKENS_FILE", file.to_str().context("no path")?),
        ("HEARTBEAT_INTERVAL", "100ms"),
    ];
    let api = Api::start_with(database.caller_url(), &settings).await?;
    let request = |path: &str, token: &str| {
        let request = api.request(Method::GET, path);
        request.header("authorization", format!("Bearer {token}"))
    };
    for path in [PROMO, ALL] {
        assert_eq!(refused(api.request(Method::GET, path)).await?.status, 401);
        assert_eq!(
            refused(request(path, OTHER)).await?.shown(),
            "403 forbidden"
        );
    }
    let mut streams = Vec::new();
    for path in [PROMO, ALL] {
        let stream = request(path, TOKEN).send().await?;
        assert_eq!(stream.status(), 200);
        streams.push(stream);
    }
    fs::write(&file, format!("{OTHER}:claim"))?;
    api.reload("tokens: 0 new or changed, 1 gone or changed, 1 as before")
        .await?;
    for stream in streams {
        // The end, and no error.
        timeout(PATIENCE, stream.bytes()).await??;
    }
    until_open(&api, 0.0).await
}
